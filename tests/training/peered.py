"""One process of a run that only says which step it is in, with the real watchdog, until something happens to one:

python peered.py MOMENT PROCESS --coordinator=... --num_processes=... --process_id=...
"""

import errno
import os
import signal
import sys
import time

from cinema_jax import command
from cinema_jax.errors import InputError
from cinema_jax.training import watchdog
from cinema_jax.training.interruption import Interruption

# Of a step; and of silence.
HANG, SILENT = 8, 5


def happen(moment: str) -> None:
    """What happens to the process."""
    if moment == "data":
        raise InputError("videos/7.mp4: no such file")
    if moment == "disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoints/8")
    if moment == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if moment == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


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
        watchdog.step("step 42 of finetune")
        # They wait for it, as in a collective.
        time.sleep(60)


if __name__ == "__main__":
    moment, process = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    command.run(main)
