"""One process of a tiny run, trained by the real command, in which something goes wrong after a chosen step:

python hosts.py MOMENT STEP PROCESSES --workdir=... --coordinator=... --num_processes=... --process_id=...

MOMENT is `kill`, `stop`, `term`, `saving` or `never`; it happens to those of PROCESSES (for example 0,1). What the
process was shown goes to <workdir>.batches, one line for each step.
"""

import json
import os
import signal
import sys
from types import SimpleNamespace

from absl import flags
from tiny import tiny_values

from cinema_jax import checkpoint, command, sharding
from cinema_jax.config import Config, parse

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "saving": signal.SIGKILL}
STEPS = 8


def config() -> Config:
    """One stage over 8 devices, a checkpoint after every second step."""
    values = tiny_values()
    values.stages = ("mllm",)
    values.mesh.data, values.mesh.fsdp = 2, 4
    values.mllm.steps, values.mllm.image_steps, values.mllm.batch_size = STEPS, 0, 8
    values.mllm.checkpoint_every, values.mllm.log_every, values.mllm.keep = 2, 1, 20
    return parse(values)


def after(owner: object, name: str, step: int, number: int) -> None:
    """Send the process a signal when `owner.name` has returned for so many times."""
    original, count = getattr(owner, name), iter(range(1, 1000))

    def wrapped(*arguments, **options):
        result = original(*arguments, **options)
        if next(count) == step:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, wrapped)


def noted(make):
    """Write down which examples each batch has."""

    def wrapped(rows, mesh, size):
        with open(f"{flags.FLAGS.workdir}.batches", "a") as file:
            file.write(json.dumps(rows["index"].tolist()) + "\n")
        return make(rows, mesh, size)

    return wrapped


if __name__ == "__main__":
    # Not above: the test's own process has other commands' flags.
    from cinema_jax import train

    moment, step, processes = sys.argv[1:4]
    del sys.argv[1:4]
    me = next((word.split("=")[1] for word in sys.argv if word.startswith("--process_id=")), "0")
    sharding.global_batch = noted(sharding.global_batch)
    if moment != "never" and me in processes.split(","):
        # Orbax writes in the background: the checkpoint is not complete yet.
        owner, name = (checkpoint.Checkpoints, "save") if moment == "saving" else (sharding, "global_batch")
        after(owner, name, int(step), SIGNALS[moment])
    train.parse = lambda _: config()
    train.CONFIG = SimpleNamespace(value=None)
    command.run(train.main)
