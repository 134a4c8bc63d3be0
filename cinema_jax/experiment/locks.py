"""The lock of a run's folder, which the system lets go of when who holds it ends, however it ends."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cinema_jax.errors import InputError
from cinema_jax.experiment import results

# Seconds that it may take to move a stage's result to its place, on slow disks.
_MOVING = 30.0


def of(workdir: Path) -> FileLock:
    """The folder's lock, free."""
    return FileLock(workdir / "lock", thread_local=False)


def acquire(lock: FileLock, workdir: Path) -> None:
    """Take it. Raises `InputError` where another process has it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{workdir} is in use by another process; wait for it, or choose another --workdir") from None


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the folder's lock for this process alone."""
    lock = of(workdir)
    acquire(lock, workdir)
    try:
        yield
    finally:
        lock.release()


def unsettled(workdir: Path) -> list[str]:
    """The finished stages of which something lies aside still; a run that goes on moves it in a moment."""
    end = time.monotonic() + _MOVING
    while (stages := results.unsettled(workdir)) and _in_use(workdir) and time.monotonic() < end:
        time.sleep(0.1)
    return stages


def _in_use(workdir: Path) -> bool:
    try:
        with locked(workdir):
            return False
    except InputError:
        return True
