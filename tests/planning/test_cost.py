"""What `plan --price` says a config costs."""

import dataclasses
import functools

import numpy as np
import pytest
from tiny import random_run

from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.planning import cost, planner
from cinema_jax.planning.planner import Target
from cinema_jax.training.remaining import stage_flops


@pytest.fixture(scope="module", autouse=True)
def _counted_once():
    """What a step computes is the same at every price: it is traced once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "bucket_flops", functools.cache(cost.bucket_flops))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.load(random_run(tmp_path_factory.mktemp("cost")))


@pytest.fixture(scope="module")
def found(run):
    return cost.costs(run, Target("v5e:4x4"), price=2.0, utilisation=0.5)


def test_hours_follow_from_what_the_steps_compute_and_the_chips_peak(run, found):
    assert [one.stage for one in found] == ["pretrain", "align", "finetune"]
    for one in found:
        (flops,) = cost.bucket_flops(run, one.stage).values()
        seconds = flops / (16 * 197e12 * 0.5)
        np.testing.assert_allclose(one.seconds_per_step, seconds)
        np.testing.assert_allclose(one.hours, one.steps * seconds / 3600)
        np.testing.assert_allclose(one.chip_hours, 16 * one.hours)
        np.testing.assert_allclose(one.cost, 2.0 * one.chip_hours)
        # Half a checkpoint's steps; one is written after every step.
        np.testing.assert_allclose(one.lost_minutes * 60, seconds / 2)
        np.testing.assert_allclose(one.lost_cost, one.cost / one.steps / 2)


def test_two_slices_halve_the_hours_and_cost_the_same(run, found):
    for one, two in zip(found, cost.costs(run, Target("v5e:4x4", 2), price=2.0, utilisation=0.5), strict=True):
        np.testing.assert_allclose(two.hours, one.hours / 2)
        np.testing.assert_allclose(two.cost, one.cost)


def test_the_shapes_of_a_plan_are_those_of_the_data(run):
    """`align` encodes nothing, so that its steps are all that training counts; two ways to the same batch."""
    (flops,) = cost.bucket_flops(run, "align").values()
    assert flops * run.config.align.steps == stage_flops(run, "align")


SMALL, LARGE = (5, 32, 32, 1), (9, 32, 32, 3)


@pytest.fixture(scope="module")
def curriculum(run):
    """The run with two buckets, whose `finetune` begins with single images."""
    data = dataclasses.replace(run.config.data, buckets=(LARGE, SMALL))
    finetune = dataclasses.replace(run.config.finetune, steps=8, curriculum=((1, 3, 4, 1e-3),))
    config = dataclasses.replace(run.config, data=data, finetune=finetune, stages=("finetune",))
    return dataclasses.replace(run, config=config)


def test_each_phase_costs_its_own_clips_and_batch_and_its_buckets_are_named(curriculum):
    images, clips = cost.costs(curriculum, Target("v5e:4x4"), price=2.0, utilisation=0.5)
    assert (images.stage, images.steps, clips.stage, clips.steps) == ("finetune up to 1 frames", 3, "finetune", 5)
    assert list(images.tflop_of_buckets) == ["1x32x32x3", "1x32x32x1"]
    assert list(clips.tflop_of_buckets) == ["9x32x32x3", "5x32x32x1"]
    for one in (images, clips):
        most, least = one.tflop_of_buckets.values()
        assert most > least
        np.testing.assert_allclose(one.tflop_per_step, (most + least) / 2)
    # Absent references are not paid for: a bucket computes what it would alone.
    data = dataclasses.replace(curriculum.config.data, buckets=(SMALL,))
    alone = dataclasses.replace(curriculum, config=dataclasses.replace(curriculum.config, data=data))
    ((_, flops),) = cost.bucket_flops(alone, "finetune").items()
    assert clips.tflop_of_buckets["5x32x32x1"] * 1e12 < flops * 1.01
    told = cost.table([images, clips], curriculum, Target("v5e:4x4"), 2.0, 0.5)
    assert "finetune up to 1 frames" in told
    assert "9x32x32x3" in told


def test_shares_say_how_many_steps_are_of_each_bucket(curriculum):
    for shares, weights in (((1, 0), (1, 0)), ((1, 3), (0.25, 0.75))):
        for one in cost.costs(curriculum, Target("v5e:4x4"), 2.0, 0.5, shares):
            expected = np.dot(weights, list(one.tflop_of_buckets.values()))
            np.testing.assert_allclose(one.tflop_per_step, expected)
    for shares in ((1,), (0, 0), (1, -1)):
        with pytest.raises(InputError, match="it must be one number of 0 or more for each of the 2 buckets"):
            cost.costs(curriculum, Target("v5e:4x4"), 2.0, 0.5, shares)


def test_a_plan_has_each_phase_and_of_its_buckets_the_one_of_most_references(curriculum):
    data = dataclasses.replace(curriculum.config.data, buckets=((9, 32, 32, 1), LARGE, (5, 32, 48, 2)))
    run = dataclasses.replace(curriculum, config=dataclasses.replace(curriculum.config, data=data))
    every = planner.variants(run, "finetune")
    assert len(every) == 6
    assert [one.bucket_name for one in planner.largest(every)] == ["1x32x32x3", "1x32x48x2", "9x32x32x3", "5x32x48x2"]
    assert [one.config.finetune.batch_size for one in planner.largest(every)] == [4, 4, 2, 2]


def test_the_table_names_each_stage_the_sum_and_what_is_not_in_it(run, found):
    lines = cost.table(found, run, Target("v5e:4x4"), 2.0, 0.5).splitlines()
    assert lines[0] == "v5e:4x4 at 50% of the chips' peak, 2 for a chip and hour:"
    assert [line.split()[0] for line in lines[3:7]] == ["pretrain", "align", "finetune", "all"]
    assert "Not counted: vae, mllm, t5." in lines
    assert cost.table(found, run, Target("v5e:4x4", 2), 2.0, 0.5).startswith("2 x v5e:4x4 at 50%")
