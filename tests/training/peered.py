"""One process of a run that only says which step it is in, with the real watchdog, until something happens to one:

python peered.py MOMENT PROCESS FOLDER --coordinator=... --num_processes=... --process_id=...
"""

import errno
import os
import resource
import signal
import sys
import time

from cinema_jax.commands import command
from cinema_jax.devices import watchdog
from cinema_jax.devices.interruption import Interruption
from cinema_jax.errors import InputError

# Of a step; and of silence.
HANG, SILENT = 8, 5


def happen(moment: str) -> None:
    """What happens to the process."""
    if moment == "data":
        raise InputError("videos/7.mp4: no such file")
    if moment == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoints/8")
    if moment == "full":
        # The system refuses every file that grows beyond 1 KiB, as it refuses all on a full disk.
        return resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    if moment == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if moment == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def save() -> None:
    """A checkpoint, of which each process writes 8 MB that no compression makes small, and waits for all."""
    import jax
    import numpy as np

    from cinema_jax.experiment.checkpoint import Checkpoints
    from cinema_jax.training.state import TrainState

    mesh = jax.sharding.Mesh(np.array(jax.devices()), "all")
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("all",), ()))
    values = np.random.default_rng(0).standard_normal((mesh.size, 1 << 20))
    array = jax.make_array_from_callback(values.shape, split, values.__getitem__)
    number = jax.make_array_from_callback((), whole, lambda _: np.int32(1))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(TrainState(number, {"a": array}, {}, {}, number, number), {})


def main() -> None:
    """What all processes do."""
    command.start_processes()
    import jax

    watchdog.SILENT = SILENT if moment == "kill" else watchdog.SILENT
    watchdog.start(HANG if moment == "hang" else 60)
    watchdog.step("step 41 of finetune")
    # For all others to have seen it there.
    time.sleep(2)
    with Interruption():
        if jax.process_index() == process:
            happen(moment)
        if moment == "full":
            save()
        watchdog.step("step 42 of finetune")
        # They wait for it, as in a collective.
        time.sleep(60)


if __name__ == "__main__":
    moment, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    del sys.argv[1:4]
    command.run(main)
