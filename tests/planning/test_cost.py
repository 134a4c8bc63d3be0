"""What `plan --price` says a config costs."""

import dataclasses

import numpy as np
import pytest
from tiny import random_run

from cinema_jax.planning import cost
from cinema_jax.planning.planner import Target
from cinema_jax.training.remaining import stage_flops
from cinema_jax.training.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.load(random_run(tmp_path_factory.mktemp("cost")))


@pytest.fixture(scope="module")
def found(run):
    return cost.costs(run, Target("v5e:4x4"), price=2.0, utilisation=0.5)


def test_hours_follow_from_what_the_steps_compute_and_the_chips_peak(run, found):
    assert [one.stage for one in found] == ["pretrain", "align", "finetune"]
    for one in found:
        seconds = cost.step_flops(run, one.stage) / (16 * 197e12 * 0.5)
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
    assert cost.step_flops(run, "align") * run.config.align.steps == stage_flops(run, "align")


def test_of_several_buckets_a_step_is_their_mean(run, tmp_path):
    def flops(*buckets):
        data = dataclasses.replace(run.config.data, buckets=buckets)
        return cost.step_flops(Run(dataclasses.replace(run.config, data=data), tmp_path, init=None), "finetune")

    small, large = (5, 32, 32, 1), (9, 32, 32, 1)
    one, two = flops(small), flops(large)
    np.testing.assert_allclose(flops(small, large), (one + two) / 2)
    assert two > one


def test_the_table_names_each_stage_the_sum_and_what_is_not_in_it(run, found):
    lines = cost.table(found, run, Target("v5e:4x4"), 2.0, 0.5).splitlines()
    assert lines[0] == "v5e:4x4 at 50% of the chips' peak, 2 for a chip and hour:"
    assert [line.split()[0] for line in lines[3:7]] == ["pretrain", "align", "finetune", "all"]
    assert "Not counted: vae, mllm, t5." in lines
    assert cost.table(found, run, Target("v5e:4x4", 2), 2.0, 0.5).startswith("2 x v5e:4x4 at 50%")
