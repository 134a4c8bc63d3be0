"""What is logged, when the device is waited for, and where the time is said to have gone."""

import json
import math
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import process_environment

from cinema_jax.training import goodput
from cinema_jax.training.goodput import Goodput
from cinema_jax.training.metrics import MetricsWriter
from cinema_jax.training.profile import Profile, parse_steps
from cinema_jax.training.progress import PERFORMANCE, Progress
from cinema_jax.training.remaining import Remaining
from cinema_jax.training.stages.flow import by_time
from cinema_jax.training.step import Share
from cinema_jax.training.watch import Supply
from cinema_jax.training.work import WorkCounter


class Counter(WorkCounter):
    """Counts ten tokens a step."""

    step_flops = None

    def __init__(self):
        self.steps = 0

    def add(self, batch):
        self.steps += 1

    def rates(self, seconds):
        return {"tokens_per_second": 10 * self.steps / seconds}

    def close(self):
        pass


class Alone(Remaining):
    """No stage comes after."""

    def __init__(self):
        pass

    def seconds(self, steps, pace, flops):
        return steps * pace

    def close(self):
        pass


class Ends(Exception):
    """The run has ended."""


def values(step, total=0.0, weight=0.0, skipped=0):
    share = Share(jnp.float32(total), jnp.float32(weight))
    return {"loss": jnp.float32(step / 2), "loss_t0": share, "skipped": jnp.int32(skipped)}


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def own(line):
    """Without what depends on the machine."""
    return {name: x for name, x in line.items() if not name.startswith(PERFORMANCE)}


@pytest.fixture
def progress(tmp_path):
    """Makes the progress of a run of six steps, logged every second one."""

    def make(start=0, shares=None, **options):
        metrics = MetricsWriter(tmp_path, stage="pretrain", resume_step=start)
        spent = Goodput(tmp_path / "goodput.json")
        spent.begin("pretrain", start)
        supply = Supply(iter(()))
        settings = {"log_every": 2, "last": 5, "dropped": 0, "not_finite": lambda steps: Ends(steps)} | options
        made = Progress(
            metrics,
            supply,
            spent,
            Profile(tmp_path, range(0)),
            Counter(),
            Alone(),
            start=start,
            shares={} if shares is None else shares,
            **settings,
        )
        made.supply, made.goodput = supply, spent
        return made

    return make


def test_a_step_is_written_when_the_next_one_is_dispatched(progress, tmp_path):
    run, batch = progress(), {"x": jnp.zeros(3)}
    seen = []
    for step in (1, 2, 3, 4, 5):
        run.add(step, batch, values(step), replaced=step)
        seen.append(len(lines(tmp_path)))
    run.flush()
    assert seen == [0, 0, 1, 1, 2]
    assert [(line["step"], line["loss"], line["replaced"]) for line in lines(tmp_path)] == [
        (2, 1.0, 2.0),
        (4, 2.0, 4.0),
        (5, 2.5, 5.0),
    ]


def test_only_steps_before_the_last_one_are_waited_for(progress):
    class Value:
        def __init__(self):
            self.asked, self.read = False, False

        def copy_to_host_async(self):
            self.asked = True

        def __array__(self, dtype=None, copy=None):
            self.read = True
            return np.zeros((), np.int32)

        def __float__(self):
            return 0.0

        __int__ = __float__

    run, skipped = progress(), [Value() for _ in range(3)]
    for step, value in enumerate(skipped, 1):
        run.add(step, {"x": jnp.zeros(3)}, {"loss": jnp.float32(0), "skipped": value}, replaced=0)
        assert [(v.asked, v.read) for v in skipped[:step]] == [(True, True)] * (step - 1) + [(True, False)]


def test_shares_are_averaged_over_the_interval_and_null_where_nothing_was_seen(progress, tmp_path):
    run, batch = progress(), {"x": jnp.zeros(3)}
    for step, share in enumerate([(1.0, 0.5), (2.0, 0.25), (0.0, 0.0), (0.0, 0.0)], 1):
        run.add(step, batch, values(step, *share), replaced=0)
    run.flush()
    assert [line["loss_t0"] for line in lines(tmp_path)] == [4.0, None]


def test_an_interval_goes_on_after_a_restart(progress, tmp_path):
    batch, shares = {"x": jnp.zeros(3)}, {}
    first = progress(shares=shares)
    first.add(1, batch, values(1, 1.0, 0.5), replaced=0)
    with first.pause("checkpoint"):
        saved = json.loads(json.dumps(shares))
    second = progress(start=1, shares={name: tuple(share) for name, share in saved.items()})
    second.add(2, batch, values(2, 2.0, 0.25), replaced=0)
    second.flush()
    assert [own(line)["loss_t0"] for line in lines(tmp_path)] == [4.0]


def test_three_dropped_updates_end_the_run_before_a_checkpoint(progress):
    run, batch = progress(), {"x": jnp.zeros(3)}
    for step, skipped in enumerate([1, 2, 3], 1):
        run.add(step, batch, values(step, skipped=skipped), replaced=0)
    with pytest.raises(Ends, match=r"\[0, 1, 2\]"), run.pause("checkpoint"):
        pytest.fail("a checkpoint was taken")


def test_times_of_the_flow_fall_into_equal_buckets():
    errors, times = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([0.0, 0.24, 0.5, 1.0])
    shares = by_time(errors, times)
    with np.errstate(invalid="ignore"):
        means = [float(np.divide(*map(np.asarray, shares[f"loss_t{i}"]))) for i in range(4)]
    np.testing.assert_array_equal(means, [1.5, math.nan, 4.0, 8.0])
    assert sum(float(share.total) for share in shares.values()) == pytest.approx(float(errors.mean()))


def test_a_sample_that_is_not_finite_spoils_its_own_bucket_alone():
    shares = by_time(jnp.array([jnp.nan, 2.0]), jnp.array([0.1, 0.9]))
    assert math.isnan(shares["loss_t0"].total)
    assert float(shares["loss_t3"].total) == 1.0


def test_rates_leave_out_compiling_and_checkpoints(progress, tmp_path):
    run, batch = progress(log_every=1), {"x": jnp.zeros(3)}
    with run.dispatching(batch):
        time.sleep(0.2)
    run.add(1, batch, values(1), replaced=0)
    with run.pause("checkpoint"):
        time.sleep(0.1)
    with run.dispatching(batch):
        time.sleep(0.01)
    run.supply.waited += 0.004
    run.add(2, batch, values(2), replaced=0)
    run.flush()
    spent = run.goodput.seconds
    assert spent["compile"] >= 0.2
    assert 0.1 <= spent["checkpoint"] < 0.2
    assert spent["data"] == pytest.approx(0.004)
    line = lines(tmp_path)[1]
    rate, wait = line["perf/steps_per_second"], line["perf/data_wait"]
    assert 0 < rate <= 100
    assert wait == pytest.approx(0.004 * rate)
    assert line["perf/tokens_per_second"] == pytest.approx(20 * rate)
    assert 0 < line["perf/goodput"] < 1


def test_steps_beyond_the_checkpoint_are_lost_with_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(goodput, "WRITE_SECONDS", 0.0)

    def run(stage, start, seconds, saved_step=None):
        spent = Goodput(tmp_path / "goodput.json")
        spent.begin(stage, start)
        spent.seconds["step"] += seconds
        spent.write(saved_step)
        return spent.seconds

    run("align", 0, 3.0, saved_step=10)
    run("align", 10, 4.0)
    assert run("align", 10, 5.0)["lost"] == 4.0
    assert run("align", 10, 0.0) | {"lost": 9.0, "step": 3.0} == run("align", 10, 0.0)
    # Without its checkpoints the stage begins anew; another stage loses nothing of this one.
    assert run("align", 0, 7.0, saved_step=20)["lost"] == 12.0
    assert run("finetune", 0, 1.0)["step"] == 8.0


def test_goodput_is_a_share_of_all_the_time_since_the_first_start(tmp_path):
    file = tmp_path / "goodput.json"
    file.write_text(json.dumps({"started": time.time() - 100, "seconds": {"step": 40.0}, "stage": "", "saved_at": {}}))
    assert Goodput(file).share == pytest.approx(0.4, rel=0.1)


PROFILED = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from cinema_jax.training.profile import Profile
folder, first, end, last = Path(sys.argv[1]), *map(int, sys.argv[2:])
profile = Profile(folder, range(first, end))
for step in range(1, last + 1):
    profile.before(step, lambda: print(step))
    jax.block_until_ready(jnp.ones(3) * step)
profile.finish()
"""


@pytest.mark.parametrize(("steps", "settled"), [((2, 4, 5), [2, 4]), ((2, 9, 3), [2])], ids=["inside", "until its end"])
def test_profile_writes_a_trace_of_the_asked_steps(tmp_path, steps, settled):
    # A process that has asked libtpu for a topology, as other tests do, crashes where a trace begins.
    command = [sys.executable, "-c", PROFILED, str(tmp_path), *map(str, steps)]
    done = subprocess.run(command, env=process_environment(), capture_output=True, text=True, check=True)
    assert [int(step) for step in done.stdout.split()] == settled
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


@pytest.mark.parametrize("text", ["100", "5:5", "7:3", "a:b", "0:2", "-1:3", "11:12"])
def test_profile_steps_that_cannot_be_are_refused(text):
    with pytest.raises(ValueError, match=rf"--profile_steps is '{text}'; it must be FIRST:END, .* from 1 to 10"):
        parse_steps(text, 10)


def test_profile_steps_are_read_like_a_slice():
    assert parse_steps("100:105", 200) == range(100, 105)
    assert not parse_steps("", 200)
