"""Runs of several processes by hosts.py: how their processes end, and what they leave."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from float64 import STEPS
from hosts import SIMULATED, environment

from cinema_jax.experiment.checkpoint import step_path
from cinema_jax.training.progress import PERFORMANCE
from cinema_jax.weights.stored import open_stored

HERE = Path(__file__).parent
# The limit of a step, in seconds, where one process is lost; other runs have the command's own.
HANG = 20


def train(
    workdir: Path, moment: str = "never", step: int = 0, at: str = "", slices: str = "v5p:2x2x2"
) -> list[tuple[int, str]]:
    """Exit status and messages of each process of a run; what `moment`, `at` and `slices` mean says hosts.py."""
    processes, devices = SIMULATED[slices].processes, SIMULATED[slices].devices
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, HERE / "hosts.py", moment, str(step), at, f"--workdir={workdir}"]
    command += [f"--hang_seconds={HANG}"] if moment in ("stop", "saving", "kill", "hang") else []
    joined = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"] if processes > 1 else []
    started = [
        subprocess.Popen(
            [*command, *joined, *([f"--process_id={i}"] if joined else [])],
            env=environment(workdir.parent, devices // processes) | {"SIMULATED": slices},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    results = {}
    # One that was stopped never ends: it is waited for last.
    for i in sorted(range(processes), key=lambda i: moment == "stop" and str(i) in at.split(",")):
        if moment == "stop" and str(i) in at.split(","):
            started[i].kill()
        said = started[i].communicate(timeout=900)[1]
        results[i] = started[i].returncode, said
    return [results[i] for i in range(processes)]


def checkpoints(workdir: Path) -> Path:
    """The folder of the checkpoints of its only stage."""
    (folder,) = (workdir / "checkpoints").iterdir()
    return folder


def state(workdir: Path) -> dict[str, np.ndarray]:
    """Parameters, averages and moments at the end."""
    folder = step_path(checkpoints(workdir), STEPS) / "state"
    branches = [("params",), ("ema",), ("opt_state", "1")]
    return {
        f"{branch[0]}/{path}": np.asarray(array)
        for branch in branches
        for path, array in open_stored(folder, branch).items()
    }


def rows(workdir: Path) -> list[dict]:
    """The metrics, without those that depend on the machine and the moment."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: x for name, x in line.items() if not name.startswith(PERFORMANCE)} for line in lines]
