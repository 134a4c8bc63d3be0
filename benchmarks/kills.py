"""Kills a training run at random moments and shows that it ends as if nothing had happened:

    python benchmarks/kills.py --workdir=/tmp/kills

One run of the command below goes undisturbed. A second one is killed (SIGKILL) `--kills` times, each time at a random
moment, and started again. Parameters, averages and optimizer state of every stage, the written weights and the metrics
must then be the same to the last bit.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

from cinema_jax.experiment.checkpoint import step_path
from cinema_jax.training.progress import PERFORMANCE

WORKDIR = flags.DEFINE_string("workdir", None, "Where both runs go; must not exist.", required=True)
CONFIG = flags.DEFINE_string("config", "configs/demo.py:smoke", "What is trained.")
KILLS = flags.DEFINE_integer("kills", 30, "How often the second run is killed.")
LONGEST = flags.DEFINE_float("longest", 60.0, "Seconds between start and kill, at most.")
SEED = flags.DEFINE_integer("seed", 0, "Decides the moments.")


def start(workdir: Path) -> subprocess.Popen:
    """The training command, quiet."""
    command = [sys.executable, "-m", "cinema_jax.train", f"--config={CONFIG.value}", f"--workdir={workdir}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed_run(workdir: Path) -> list[str]:
    """Kills and starts again; returns what was going on at each kill."""
    moments, chance = [], random.Random(SEED.value)
    while len(moments) < KILLS.value:
        process = start(workdir)
        try:
            process.wait(timeout=chance.uniform(0, LONGEST.value))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            moments.append(where(workdir))
            print(f"kill {len(moments)}: {moments[-1]}", flush=True)
        else:
            assert process.returncode == 0, f"the run failed with status {process.returncode}"
            # Finished early: the rest of the kills go to another run, compared as well.
            same(workdir, workdir.with_name("whole"))
            shutil.rmtree(workdir)
    assert start(workdir).wait() == 0, "the run failed after its last kill"
    return moments


def where(workdir: Path) -> str:
    """What a killed run left: its finished stages, its last metric, and a checkpoint that was being written."""
    stages = sorted(file.stem for file in (workdir / "stages").glob("*.json"))
    lines = (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").exists() else []
    last = next((f"{row['stage']} {row['step']}" for row in map(whole_line, reversed(lines)) if row), "nothing yet")
    writing = any("tmp" in path.name for path in workdir.glob("checkpoints/*/*"))
    return f"after {last}, {len(stages)} stages finished{', a checkpoint half written' if writing else ''}"


def whole_line(line: str) -> dict | None:
    """The row of a line that was not cut off."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def same(first: Path, second: Path) -> None:
    """Raises AssertionError at the first difference."""
    stages = sorted(path.name for path in (second / "checkpoints").iterdir())
    assert stages == sorted(path.name for path in (first / "checkpoints").iterdir())
    for stage in stages:
        paths = [step_path(run / "checkpoints" / stage) for run in (first, second)]
        states = [jax.tree_util.tree_leaves_with_path(ocp.load_checkpointables(path)["state"]) for path in paths]
        for (path, a), (_, b) in zip(*states, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=f"{stage} {path}")
    for file in sorted((second / "parts").glob("*/*.safetensors")):
        a, b = load_file(first / file.relative_to(second)), load_file(file)
        for name in b:
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"{file} {name}")
    assert metrics(first) == metrics(second), "metrics differ"


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl, without what depends on the machine and the moment."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: x for name, x in line.items() if not name.startswith(PERFORMANCE)} for line in lines]


def main(_) -> None:
    """Both runs, and the comparison."""
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every array
    folder = Path(WORKDIR.value)
    folder.mkdir(parents=True)
    started = time.time()
    assert start(folder / "whole").wait() == 0, "the undisturbed run failed"
    print(f"undisturbed: {time.time() - started:.0f} s", flush=True)
    moments = killed_run(folder / "killed")
    same(folder / "killed", folder / "whole")
    print(f"{len(moments)} kills in {time.time() - started:.0f} s: states, weights and metrics are the same to the bit")


if __name__ == "__main__":
    app.run(main)
