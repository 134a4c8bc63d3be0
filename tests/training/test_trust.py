"""Kills, signals, a second process, bad records and bad numbers: what a run does when something goes wrong."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from killed import STEPS, config
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file
from tiny import process_environment

from cinema_jax.commands import command
from cinema_jax.devices.interruption import Interrupted
from cinema_jax.errors import InputError
from cinema_jax.experiment.checkpoint import complete_steps, step_path
from cinema_jax.experiment.run import Run
from cinema_jax.training import loop
from cinema_jax.training.progress import PERFORMANCE
from cinema_jax.training.stages import base
from cinema_jax.training.watch import DroppedUpdates, Supply, check_unreadable

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    loop.train(Run.open(config(), workdir))
    return workdir


def assert_same(first: Path, second: Path) -> None:
    """States, weights and metrics, to the last bit."""
    states = [
        jax.tree_util.tree_leaves_with_path(ocp.load_checkpointables(step_path(run / "checkpoints/mllm"))["state"])
        for run in (first, second)
    ]
    for (path, a), (_, b) in zip(*states, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(path))
    a, b = (load_file(run / "parts/mllm/model.safetensors") for run in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert rows(first) == rows(second)


def rows(run: Path) -> list[dict]:
    """The metrics, without those that depend on the machine and the moment."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: x for name, x in line.items() if not name.startswith(PERFORMANCE)} for line in lines]


def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(whole, tmp_path):
    environment = process_environment()
    moments = ("saving", "saved", "written", "recorded", "moving", "never")
    for number, moment in enumerate(moments):
        command = [sys.executable, HERE / "killed.py", tmp_path / "run", moment]
        code = subprocess.run(command, env=environment, check=False, capture_output=True).returncode
        assert code == (0 if moment == "never" else -signal.SIGKILL)
        assert (tmp_path / "run/stages/mllm.json").exists() == (number >= moments.index("recorded"))
        assert (tmp_path / "run/stages/mllm.parts").exists() == (moment in ("written", "recorded", "moving"))
        assert (tmp_path / "run/parts/mllm/config.json").exists() == (moment == "never")
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_the_run_which_then_goes_on_to_the_same(whole, tmp_path, monkeypatch, number):
    build = loop.make_step

    def signalled(*arguments, **options):
        step = build(*arguments, **options)

        def wrapped(state, frozen, batch):
            if int(state.step) == 2:
                os.kill(os.getpid(), number)
            return step(state, frozen, batch)

        return wrapped

    monkeypatch.setattr(loop, "make_step", signalled)
    # The parent may have had it ignored, as `nohup` and shells do for what runs in the background.
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"stopped by SIG(INT|TERM) after step 3 of mllm; the same command goes on"):
        loop.train(Run.open(config(), tmp_path / "run"))
    assert complete_steps(tmp_path / "run/checkpoints/mllm")[-1] == 3
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    loop.train(Run.open(config(), tmp_path / "run"))
    assert_same(tmp_path / "run", whole)


def test_a_second_process_on_the_same_folder_is_refused(tmp_path):
    run = Run.open(config(), tmp_path / "run")
    with run.lock(), pytest.raises(InputError, match="is in use by another process"):
        loop.train(Run.open(config(), tmp_path / "run"))
    with run.lock():
        pass


def test_three_updates_dropped_in_a_row_stop_the_run_and_name_the_examples(tmp_path, monkeypatch):
    build = base.make_train_step

    def spoiled(loss, *arguments, **options):
        def wrong(params, frozen, batch, keys):
            value, metrics = loss(params, frozen, batch, keys)
            # From the third batch on.
            return jax.tree.map(lambda x: jnp.where(batch["index"][0] >= 4, jnp.nan, x), value), metrics

        return build(wrong, *arguments, **options)

    monkeypatch.setattr(base, "make_train_step", spoiled)
    values = dataclasses.replace(config(), mllm=dataclasses.replace(config().mllm, steps=8))
    with pytest.raises(InputError, match=r"mllm: loss or gradient was not finite in steps 3, 4, 5, whose updates"):
        loop.train(Run.open(values, tmp_path / "run"))
    told = json.loads((tmp_path / "run/not_finite.json").read_text())
    assert list(told["examples"]) == ["3", "4", "5"]
    assert all(name.startswith("critters-train-0-") for names in told["examples"].values() for name in names)
    state = ocp.load_checkpointables(step_path(tmp_path / "run/checkpoints/mllm"))["state"]
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state["params"]))


def test_unreadable_records_are_replaced_counted_and_not_forgiven_above_one_percent(tmp_path, monkeypatch):
    source = Run.open(config(), tmp_path / "probe").source("train")
    portrait = type(source).portrait_task
    broken: set[int] = set()

    def sometimes(self, index, rng):
        if index in broken:
            raise InputError(f"clip {index} is cut short")
        return portrait(self, index, rng)

    monkeypatch.setattr(type(source), "portrait_task", sometimes)
    broken.add(loop_rows(tmp_path)[0])
    loop.train(Run.open(config(), tmp_path / "one"))
    assert [row["replaced"] for row in rows(tmp_path / "one") if "replaced" in row] == [1] * STEPS
    with pytest.raises(InputError, match=r"2 of 100 records cannot be read, more than 1 %: a: cut; b: cut"):
        check_unreadable({"a": "cut", "b": "cut"}, 100, "records")
    check_unreadable({"a": "cut", "b": "cut"}, 200, "records")


def loop_rows(tmp_path: Path) -> list[int]:
    """The records of the first step."""
    run = Run.open(config(), tmp_path / "probe")
    mesh = loop.sharding.make_mesh()
    with jax.set_mesh(mesh):
        trainer = loop.Trainer(run, loop.STAGES["mllm"], mesh)
        return trainer._loader(trainer.examples("train"), trainer.phases[0]).entries(0)


def test_dropped_updates_must_be_in_a_row():
    watch = DroppedUpdates(5)
    totals = [6, 7, 7, 8, 9, 10, 10]
    assert [watch.too_many(step, total) for step, total in enumerate(totals)] == [False] * 5 + [True, False]
    assert watch.in_a_row == []


def test_waiting_counts_only_while_the_device_has_nothing_to_do():
    class Result:
        def __init__(self, ready):
            self.is_ready = lambda: ready

    for ready in (True, False):
        supply = Supply(iter(range(3)))
        for _ in supply:
            supply.busy_with = Result(ready)
        assert (supply.waiting_share > 0) == ready


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "x", "runs/a"), "runs/a: No space left on device"),
        (PermissionError(errno.EACCES, "x", "runs/b"), "runs/b: Permission denied"),
        (ValueError("write failed [OS error 28: No space left on device]"), "the disk: No space left on device"),
        (ValueError("something else"), None),
    ],
)
def test_troubles_of_the_disk_are_told_in_one_sentence(error, told):
    assert command.storage_trouble(error) == told
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = error
    assert command.storage_trouble(wrapped) == told


FULL_DISK = """
import resource, sys
from pathlib import Path
from killed import config
from cinema_jax.commands import command
from cinema_jax.training import loop
from cinema_jax.experiment.run import Run
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
workdir = Path(sys.argv.pop())
command.run(lambda: loop.train(Run.open(config(), workdir)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_run_that_cannot_write_ends_with_a_sentence_and_goes_on_when_it_can(whole, tmp_path):
    environment = process_environment()
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", FULL_DISK, str(workdir)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "File too large; what was saved before is intact" in ended.stderr
    assert "Traceback" not in ended.stderr
    loop.train(Run.open(config(), workdir))
    assert_same(whole, workdir)
