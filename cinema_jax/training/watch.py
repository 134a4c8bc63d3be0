"""What a run keeps an eye on while it steps: data that cannot be read, updates that were dropped, waiting for data."""

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

from cinema_jax.devices import distributed
from cinema_jax.errors import InputError

logger = logging.getLogger(__name__)

# So many dropped updates in a row are no accident.
MAX_DROPPED = 3
# Of the records; one is always forgiven.
MAX_UNREADABLE = 0.01
# A host whose data all devices wait for, in more than this share of the time, is told, but no more often than so.
SLOW, SLOW_SECONDS = 0.1, 600.0


def check_unreadable(messages: dict[str, str], records: int, what: str) -> None:
    """Raises `InputError`, with the list, where more than 1 % of the records cannot be read.

    Args:
        messages: id of a record to what is wrong with it.
        records: how many there are, readable or not.
    """
    if len(messages) > max(1, MAX_UNREADABLE * records):
        listed = "; ".join(f"{name}: {message}" for name, message in sorted(messages.items()))
        raise InputError(f"{len(messages)} of {records} {what} cannot be read, more than 1 %: {listed}")


class DroppedUpdates:
    """Counts updates that were dropped in a row because loss or gradient was not finite."""

    def __init__(self, dropped: int):
        self._total = dropped
        self.in_a_row: list[int] = []

    def too_many(self, step: int, dropped: int) -> bool:
        """Whether three updates in a row were dropped; `dropped` is the state's counter after step number `step`."""
        self.in_a_row = [*self.in_a_row, step] if dropped > self._total else []
        self._total = dropped
        return len(self.in_a_row) >= MAX_DROPPED


class Supply:
    """Batches, and how long the device waited for them: time in which it had nothing else to do, at most."""

    def __init__(self, batches: Iterator[Any]):
        self._batches = batches
        # Seconds in which the device had nothing to do.
        self.waited = 0.0
        self._started: float | None = None
        # A result of the step before: while it is not ready, nobody waits.
        self.busy_with: Any = None

    def __iter__(self) -> "Supply":
        return self

    def __next__(self) -> Any:
        asked = time.perf_counter()
        batch = next(self._batches)
        # The first batch waits for the workers to start, and the first step for the compiler.
        if self._started is None:
            self._started = time.perf_counter()
        elif self.busy_with is not None and self.busy_with.is_ready():
            self.waited += time.perf_counter() - asked
        return batch

    @property
    def waiting_share(self) -> float:
        """Of the time since the first batch."""
        return self.waited / (time.perf_counter() - self._started) if self._started else 0.0


class Slowest:
    """Which of several processes the others wait for: the one whose own data come last."""

    def __init__(self):
        self._before, self._asked, self._told = 0.0, time.perf_counter(), -math.inf

    def of_all(self, waited: float) -> dict[str, float]:
        """Metrics of the slowest since the last call: its number, and the share of time in which devices waited for it.

        Nothing for a process that is alone. Every process must call this.

        Args:
            waited: `Supply.waited` of this process.
        """
        if not distributed.several():
            return {}
        now = time.perf_counter()
        share = (waited - self._before) / (now - self._asked)
        self._before, self._asked = waited, now
        told = distributed.gather([share, distributed.name()])
        process = max(range(len(told)), key=lambda i: told[i][0])
        most, name = told[process]
        if most > SLOW and distributed.is_first() and now > self._told + SLOW_SECONDS:
            self._told = now
            logger.warning("all devices waited for the data of %s in %.0f %% of the time", name, 100 * most)
        return {"slowest_process": process, "slowest_data_wait": most}
