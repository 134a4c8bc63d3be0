"""Files that appear when they are whole, in a folder or a bucket, for whoever shares it with other processes."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath
from filelock import FileLock, Timeout

from cinema_jax.inputs.files import own_folder, scratch, whole_file

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Output:
    """Where the records go: a folder or a bucket. Files appear there when they are whole."""

    path: epath.Path

    @property
    def local(self) -> Path:
        """A folder for what is being written: the same one, or one of this machine in a bucket's stead."""
        if "://" not in str(self.path):
            return Path(self.path)
        return own_folder("cinema_jax") / hashlib.sha256(str(self.path).encode()).hexdigest()[:16]

    def publish(self, name: str, write: Callable[[Path], object]) -> object:
        """Let `write` write a file, and put it in its place."""
        final, local = self.path / name, self.local / name
        final.parent.mkdir(parents=True, exist_ok=True)
        local.parent.mkdir(parents=True, exist_ok=True)
        if "://" not in str(final):
            # Whoever publishes holds the lock of what it writes.
            with whole_file(local, alone=True) as partial:
                return write(partial)
        with scratch(local) as folder:
            write(folder / "whole")
            # An object of a bucket appears when all of it has arrived.
            epath.Path(folder / "whole").copy(final, overwrite=True)

    def publish_json(self, name: str, value: Any) -> None:
        """The same for a value."""
        self.publish(name, lambda file: file.write_text(json.dumps(value, indent=1) + "\n"))

    def lock(self, name: str) -> FileLock:
        """Keeps other processes of this machine away; the system lets go of it when this one ends, however it ends."""
        folder = self.local / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock", thread_local=False)


class Locks:
    """The shards that this process makes."""

    def __init__(self, output: Output):
        self._output = output
        self._held: dict[int, FileLock] = {}

    def acquire(self, shard: int) -> bool:
        """Whether it is free, and now ours."""
        lock = self._output.lock(f"{shard:05d}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("shard %d is left to another process, which is making it", shard)
            return False
        self._held[shard] = lock
        return True

    def release(self, shard: int) -> None:
        self._held.pop(shard).release()

    def close(self) -> None:
        """Release all."""
        for shard in list(self._held):
            self.release(shard)
