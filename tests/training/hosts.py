"""One process of a run, mostly that of `float64.py`, by the real command, in which something goes wrong at some step:

python hosts.py MOMENT STEP PROCESSES --workdir=... --coordinator=... --num_processes=... --process_id=...

MOMENT is `kill`, `stop`, `term`, `saving` or `never`; or `version` or one of `FAULTS`. It happens to those of PROCESSES
(for example 0,1). What the process was shown goes to <workdir>.batches, one line for each step; what is sampled in the
end, to <workdir>.sampled.npy. The environment's `SIMULATED` names the `Slices` whose order the devices have.
"""

import dataclasses
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import float64
import numpy as np
import pods
from absl import flags
from tiny import process_environment, tiny_values

from cinema_jax.cinema import Cinema
from cinema_jax.commands import command
from cinema_jax.config import Config, parse
from cinema_jax.devices import distributed, sharding
from cinema_jax.errors import InputError
from cinema_jax.experiment import checkpoint
from cinema_jax.training import facts
from cinema_jax.training.stages.base import Stage

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "saving": signal.SIGKILL}


@dataclasses.dataclass(frozen=True)
class Slices:
    """Hosts and chips that a run is simulated on, and its mesh over them."""

    processes: int
    # Of all processes.
    devices: int
    mesh: Mapping[str, int]
    # Of `pods.py`; empty: the devices are in the order of their numbers.
    topology: str = ""
    batch: int = float64.BATCH
    # Whether a finished run samples, and whether what is small is split too: both take long to compile.
    samples: bool = False
    splits_all: bool = False
    # `finetune` in float64, or `mllm` in float32.
    stage: str = "finetune"


# Batch, samples, splits_all.
LARGE = (16, True, True)
# By their names. On none of the real slices do all hosts hold rows that are neighbours, or none that others hold too.
SIMULATED = {
    "one device": Slices(1, 1, {}),
    "8 devices": Slices(1, 8, {"data": 2, "fsdp": 4}),
    "v5p:2x2x2": Slices(2, 8, {"data": 4, "fsdp": 2}, "1 x v5p:2x2x2", samples=True),
    "v5p:2x2x2, mllm": Slices(2, 8, {"data": 4, "fsdp": 2}, "1 x v5p:2x2x2", stage="mllm"),
    "v5e:4x4": Slices(4, 16, {"data": 4, "fsdp": 2, "context": 2}, "1 x v5e:4x4"),
    # With a larger batch, for slices of more hosts.
    "one device, 16": Slices(1, 1, {}, "", *LARGE),
    "v5e:4x4, 16": Slices(4, 16, {"fsdp": 16}, "1 x v5e:4x4", *LARGE),
    "v5e:4x4, shared": Slices(4, 16, {"data": 2, "fsdp": 2, "context": 4}, "1 x v5e:4x4", *LARGE),
    "v5p:2x2x4, 16": Slices(4, 16, {"data": 2, "fsdp": 8}, "1 x v5p:2x2x4", *LARGE),
    "v5e:4x8, 16": Slices(8, 32, {"data": 8, "fsdp": 2, "context": 2}, "1 x v5e:4x8", *LARGE),
    "2 x v5p:2x2x2, 16": Slices(4, 16, {"slice": 2, "data": 4, "fsdp": 2}, "2 x v5p:2x2x2", *LARGE),
    "2 x v5e:4x4, 16": Slices(8, 32, {"slice": 2, "data": 4, "fsdp": 2, "tensor": 2}, "2 x v5e:4x4", *LARGE),
}


def fill_disk() -> None:
    """The system refuses every file that grows beyond 1 KiB, as it refuses all on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))


def lose_data() -> None:
    """What the loader says where nothing can be read any more."""
    raise InputError("videos/7.mp4: no such file")


def install_another() -> None:
    """What the metadata of an older library would say; before the command starts."""
    versions = facts.versions
    facts.versions = lambda: versions() | {"optax": "0.0.1"}


# What befalls a process that goes on living.
FAULTS = {"disk": fill_disk, "data": lose_data, "hang": lambda: time.sleep(1000), "slow": lambda: time.sleep(1)}


def environment(folder: Path, devices: int) -> dict[str, str]:
    """Of a process with so many devices, which finds in `folder` what others have compiled."""
    return process_environment(devices) | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "GLIBC_TUNABLES": "",
    }


def config(frozen: Path, slices: Slices) -> Config:
    """The run on such slices, a checkpoint after every second step; with `finetune` that of `float64.py`."""
    config = float64.config(frozen, **slices.mesh) if slices.stage == "finetune" else mllm(slices.mesh)
    sizes = {"batch_size": slices.batch, "checkpoint_every": 2, "log_every": 1, "keep": 20}
    stage = dataclasses.replace(config.of_stage(slices.stage), **sizes)
    return dataclasses.replace(config, **{slices.stage: stage})


def mllm(mesh: Mapping[str, int]) -> Config:
    """The multimodal LLM alone, from random weights: what compiles fastest."""
    values = tiny_values()
    values.stages, values.mllm.steps, values.mllm.image_steps = ("mllm",), float64.STEPS, 0
    values.mesh = dict.fromkeys(values.mesh, 1) | dict(mesh)
    return parse(values)


def after(owner: object, name: str, step: int, happen: Callable[[], None]) -> None:
    """What happens when `owner.name` has returned for so many times; of `slow`, each time from there on."""
    original, count = getattr(owner, name), iter(range(1, 1000))

    def wrapped(*arguments, **options):
        result = original(*arguments, **options)
        calls = next(count)
        if calls == step or (calls > step and happen is FAULTS["slow"]):
            happen()
        return result

    setattr(owner, name, wrapped)


def noted(make):
    """Write down which examples each batch has."""

    def wrapped(rows, mesh, size):
        with open(f"{flags.FLAGS.workdir}.batches", "a") as file:
            file.write(json.dumps(rows["index"].tolist()) + "\n")
        return make(rows, mesh, size)

    return wrapped


def sample(stage, run, configs, params, metrics) -> dict:
    """In the place of what a stage shows of itself, which takes longer to compile than its step."""
    latents = float64.sampled(run, Cinema(run.config, configs), params)
    if distributed.is_first():
        np.save(f"{run.workdir}.sampled.npy", latents)
    return {}


if __name__ == "__main__":
    # Not above: the test's own process has other commands' flags.
    from cinema_jax import train

    moment, step, processes = sys.argv[1:4]
    del sys.argv[1:4]
    me = next((word.split("=")[1] for word in sys.argv if word.startswith("--process_id=")), "0")
    sharding.global_batch = noted(sharding.global_batch)
    if moment == "version" and me in processes.split(","):
        install_another()
    elif moment != "never" and me in processes.split(","):
        # Orbax writes in the background: the checkpoint is not complete yet.
        owner, name = (checkpoint.Checkpoints, "save") if moment == "saving" else (sharding, "global_batch")
        after(owner, name, int(step), FAULTS.get(moment) or (lambda: os.kill(os.getpid(), SIGNALS[moment])))
    slices = SIMULATED[os.environ["SIMULATED"]]
    if slices.topology:
        pods.arrange(slices.topology)
    if slices.splits_all:
        float64.split_what_is_small()
    # What a stage shows of itself takes longer to compile than its step.
    Stage.closing_report = sample if slices.samples else lambda *_: {}
    train.parse = lambda _: config(Path(flags.FLAGS.workdir).parent, slices)
    train.CONFIG = SimpleNamespace(value=None)
    command.run(train.main)
