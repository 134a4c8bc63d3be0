"""The time left of a run with stages that have not begun."""

import time

import numpy as np
import pytest
from tiny import random_run, tiny_values

from cinema_jax.config import parse
from cinema_jax.experiment.run import Run
from cinema_jax.training import remaining
from cinema_jax.training.remaining import Remaining, stage_flops


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.load(random_run(tmp_path_factory.mktemp("remaining")))


def asked(left: Remaining, *arguments) -> float | None:
    """The answer, once everything is counted."""
    found = left.seconds(*arguments)
    for one in (left._counted or {}).values():
        one.exception(timeout=300)
    return found if found is not None else left.seconds(*arguments)


def test_later_stages_take_what_they_compute_at_the_speed_of_this_one(run):
    left = Remaining(run, "pretrain")
    # Ten steps of 2 s, of 5 GFLOP each; the rest at 2.5 GFLOP/s.
    after = (stage_flops(run, "align") + stage_flops(run, "finetune")) / 2.5e9
    np.testing.assert_allclose(asked(left, 10, 2.0, 5 * 10**9), 20 + after)
    assert after > 0
    assert left.title == "pretrain (4 of 6)"
    left.close()


def test_the_last_stage_and_one_alone_need_no_counting(run):
    assert Remaining(run, "finetune").seconds(7, 3.0, None) == 21
    values = tiny_values()
    values.stages = ("vae",)
    assert Remaining(Run(parse(values), run.workdir), "vae").title == "vae"


def test_a_stage_twice_as_long_with_more_videos_to_encode_takes_more(run, tmp_path):
    def flops(**changes):
        values = tiny_values()
        values.finetune.steps, values.data.train_videos = changes.get("steps", 2), changes.get("videos", 4)
        values.init = str(run.workdir)
        return stage_flops(Run(parse(values), tmp_path), "finetune")

    one, longer, more = flops(), flops(steps=4), flops(videos=8)
    steps, encoding = longer - one, more - one
    assert steps > 0
    assert encoding > 0
    # 2 steps and 4 videos are all that there is.
    assert one == pytest.approx(steps + encoding, rel=1e-9)


def test_what_cannot_be_counted_yet_or_at_all_is_not_guessed(run, monkeypatch):
    assert Remaining(run, "pretrain").seconds(1, 1.0, None) is None

    def fails(*_):
        time.sleep(0.2)
        raise OSError("no such bucket")

    monkeypatch.setattr(remaining, "stage_flops", fails)
    left = Remaining(run, "pretrain")
    assert left.seconds(1, 1.0, 10) is None
    assert asked(left, 1, 1.0, 10) is None
