"""Runs the `mllm` stage of the tiny config in a process of its own that kills itself at a chosen moment:

python killed.py WORKDIR MOMENT, where MOMENT is `saving`, `saved`, `written`, `recorded`, `moving` or `never`.
"""

import os
import signal
import sys
from pathlib import Path

from tiny import tiny_values

from cinema_jax.config import Config, parse
from cinema_jax.experiment import checkpoint, parts
from cinema_jax.experiment.run import Run
from cinema_jax.training import loop

STEPS = 4


def config() -> Config:
    """One stage, a checkpoint after every step."""
    values = tiny_values()
    values.stages = ("mllm",)
    values.mllm.steps, values.mllm.image_steps, values.mllm.checkpoint_every = STEPS, 2, 1
    return parse(values)


def die() -> None:
    """What no program can catch."""
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: object, name: str, when=lambda result: True) -> None:
    """Die as soon as `owner.name` has returned."""
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
        result = original(*arguments, **options)
        if when(arguments):
            die()
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    workdir, moment = Path(sys.argv[1]), sys.argv[2]
    if moment == "saving":  # Orbax writes in the background: the second checkpoint is not complete yet
        after(checkpoint.Checkpoints, "save", when=lambda arguments: int(arguments[1].step) == 2)
    elif moment == "saved":  # the last checkpoint is complete, and nothing else
        after(checkpoint.Checkpoints, "wait")
        save = checkpoint.Checkpoints.save

        def save_and_wait(self, state, metadata):
            save(self, state, metadata)
            if int(state.step) == STEPS:
                self.wait()

        checkpoint.Checkpoints.save = save_and_wait
    elif moment == "written":  # the weights are written, but the stage is not marked as finished
        after(parts, "write")
    elif moment == "recorded":  # the stage is marked as finished, but its weights are not in their place
        after(parts, "write_json", when=lambda arguments: arguments[0].parent.name == "stages")
    elif moment == "moving":  # some of them are
        after(Path, "replace", when=lambda arguments: arguments[1].parent == workdir / "parts/mllm")
    loop.train(Run.open(config(), workdir))
