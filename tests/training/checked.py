"""One host of a check by the real command, in a folder that stands for its disk: `run` there is the workdir, `data` the
clips, links to what all hosts share or, where that is what is wrong with the host, its own.

python checked.py FAULTS SEED --check --config=... --workdir=run --coordinator=...

FAULTS names, for example disk,clock, what is wrong with this host beside its disk and its environment; see `fault`.
"""

import resource
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import prepared
from ml_collections import ConfigDict

from cinema_jax.commands import command
from cinema_jax.config import parse
from cinema_jax.devices import distributed
from cinema_jax.training import links

DEVICES = 2


def values(seed: int) -> ConfigDict:
    """A stage that reads clips, over the devices of four hosts."""
    result = prepared.values(Path("data"))
    result.seed, result.stages = seed, ("pretrain",)
    result.pretrain.batch_size, result.pretrain.steps, result.pretrain.trainable = 8, 2, ("dit/.*",)
    result.pretrain.optimizer.rates = ()
    result.mesh.data, result.mesh.fsdp = 2, 4
    return result


def fault(name: str) -> None:
    """Break this host."""
    if name == "disk":
        # The system refuses every file that grows beyond 1 KiB, as it refuses all on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    if name == "clock":
        now = time.time
        time.time = lambda: now() + 30
    if name == "room":
        usage = shutil.disk_usage
        shutil.disk_usage = lambda path: usage(path)._replace(free=1000 if "check-" in str(path) else usage(path).free)
    if name == "link":
        numbers = links._numbers
        links._numbers = lambda mesh: numbers(mesh) + np.int32(1)


if __name__ == "__main__":
    # Not above: the test's own process has other commands' flags.
    from cinema_jax import train

    faults, seed = sys.argv[1:3]
    del sys.argv[1:3]
    distributed.VISIBLE_SECONDS = 3
    for each in filter(None, faults.split(",")):
        fault(each)
    train.parse = lambda _: parse(values(int(seed)))
    train.CONFIG = SimpleNamespace(value=None)
    command.run(train.main)
