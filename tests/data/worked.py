"""Examples made in worker processes. Imports neither jax nor Grain, which would bring jax."""

import os
import signal
import sys

import numpy as np

from cinema_jax.data.worker import Maker, Workers
from cinema_jax.errors import InputError


class Examples:
    """Says which entry it was made from and with which random numbers; some entries cannot be read."""

    def __init__(self, corrupt=()):
        self.corrupt = frozenset(corrupt)

    def __call__(self, index, global_index, rng):
        if index in self.corrupt:
            raise InputError(f"entry {index} is corrupt")
        return {"entry": np.int32(index), "noise": rng.uniform(size=3)}


class Environment:
    """Adds the process, and whether jax is loaded there."""

    def __init__(self, make):
        self.make = make

    def __call__(self, index, global_index, rng):
        with_jax = any(name.split(".")[0] in ("jax", "jaxlib") for name in sys.modules)
        return {**self.make(index, global_index, rng), "process": np.array([os.getpid(), with_jax])}


class Dying(Examples):
    """Is killed by the system at an entry."""

    def __call__(self, index, global_index, rng):
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(index, global_index, rng)


def start():
    """Starts a worker, and prints which process it is."""
    made, _ = Workers(Maker(Environment(Examples()), (1,), 0, "train"), 1)(0, 0)
    print(made["process"][0], flush=True)
