"""Making single examples, and reading single clips, in this process or in worker processes.

No jax and no Grain here (Grain imports jax): worker processes import this file and what their examples need.
"""

import bisect
import itertools
import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np

from cinema_jax.data.example import VideoSource
from cinema_jax.errors import InputError, WorkerLost, passing_error

Arrays = dict[str, np.ndarray | np.generic]
# (dataset index, global example index, generator) -> arrays without a batch axis, of the same shapes for every example.
MakeExample = Callable[[int, int, np.random.Generator], Arrays]
# (global example index, dataset index, message)
Failure = tuple[int, int, str]
Loaded = tuple[Arrays, list[Failure]]
# So many unreadable entries in a row are no accident.
MAX_ATTEMPTS = 8


def example_rng(seed: int, purpose: str, global_index: int, attempt: int = 0) -> np.random.Generator:
    """The generator of one example: independent of row, host, worker and everything that came before."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), global_index, attempt])


def bucket_of(sizes: Sequence[int], entry: int) -> tuple[int, int]:
    """Which bucket an entry is in, and which of its entries it is; numbers run through one bucket after the other."""
    ends = list(itertools.accumulate(sizes))
    bucket = bisect.bisect_right(ends, entry)
    return bucket, entry - ends[bucket] + sizes[bucket]


@dataclass(frozen=True)
class Maker:
    """Makes the example of a global number; an entry that raises `InputError` is replaced by another one.

    Which, is a function of the example's number and bucket alone, so that all processes agree.
    """

    make_example: MakeExample
    # Entries of each bucket of the dataset; their numbers run through all buckets.
    sizes: tuple[int, ...]
    seed: int
    purpose: str

    def __call__(self, global_index: int, entry: int) -> Loaded:
        """The example of dataset entry `entry`, and the entries that could not be read before one could.

        Raises:
            InputError: after 8 of them.
            OSError: the storage is out of reach for now.
        """
        failures: list[Failure] = []
        for attempt in range(MAX_ATTEMPTS):
            rng = example_rng(self.seed, self.purpose, global_index, attempt)
            try:
                example = self.make_example(entry, global_index, rng)
            except InputError as error:
                # Storage that is out of reach for now says nothing of the entry.
                if passing := passing_error(error):
                    raise passing from None
                failures.append((global_index, entry, str(error)))
                entry = self._replacement(global_index, entry, attempt + 1)
                continue
            return {**example, "index": np.int32(global_index)}, failures
        raise InputError(f"{MAX_ATTEMPTS} examples in a row could not be read; the last one: {failures[-1][2]}")

    def _replacement(self, global_index: int, entry: int, attempt: int) -> int:
        number = int(np.random.SeedSequence([self.seed, global_index, attempt]).generate_state(1)[0])
        bucket, row = bucket_of(self.sizes, entry)
        return entry - row + number % self.sizes[bucket]


@dataclass(frozen=True)
class ClipReader:
    """Reads the clips of a source, those that cannot be read included."""

    source: VideoSource

    def __call__(self, index: int) -> np.ndarray | InputError:
        """The frames of clip `index`, or why there are none. Raises OSError where the storage is out of reach now."""
        try:
            return self.source.video(index)
        except InputError as error:
            # Storage that is out of reach for now says nothing of the video.
            if passing := passing_error(error):
                raise passing from None
            return error


class Workers:
    """A function, which must be one of files without jax, in `count` other processes.

    Close it to stop them; they also end when this process does.
    """

    def __init__(self, function: Callable[..., Any], count: int):
        spawn = multiprocessing.get_context("spawn")
        self._count = count
        self._pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_start, initargs=(function,))

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns: call it from several threads. Raises `WorkerLost` where a process was killed."""
        try:
            return self._pool.submit(_call, *arguments).result()
        except BrokenProcessPool:
            raise WorkerLost(
                "a process that loads data was killed, most often because the machine's memory was full: fewer "
                f"config.data.workers ({self._count} now) or threads need less"
            ) from None

    def close(self) -> None:
        """Stop the processes, without waiting for what they have not begun."""
        self._pool.shutdown(cancel_futures=True)


_function: Callable[..., Any] | None = None


def _start(function: Callable[..., Any]) -> None:
    global _function
    _function = function
    # An interrupted run finishes its step, for which it needs its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _call(*arguments: Any) -> Any:
    assert _function is not None
    return _function(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
