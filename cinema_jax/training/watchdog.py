"""Ends a process whose run has stopped moving, so that a dead or hung host ends the job instead of hanging it.

The run says what it begins and how long that may take; a thread waits for the next word. jax notices a dead process by
itself, but a hung one, or a collective that never returns, only by this.
"""

import faulthandler
import sys
import threading
import time

from cinema_jax import distributed

# For what has no steps or compiles anew: an evaluation, a checkpoint, a batch of samples.
LONG = 1800.0


class Watchdog:
    """Watches one process of several.

    Args:
        seconds: the limit of a step; all else has half an hour for each piece.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.begin("the start", LONG)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self, what: str, limit: float) -> None:
        """What was begun before has ended; `what` may take `limit` seconds."""
        self._now = what, limit, time.monotonic() + limit

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self.seconds / 4))
            what, limit, deadline = self._now
            if time.monotonic() > deadline:
                faulthandler.dump_traceback()
                print(
                    f"error: {distributed.name()} waited more than {limit:g} s in {what}, so a host is lost or hangs "
                    "(the stacks above say where this one stands; longer steps need a larger --hang_seconds); the same "
                    "command goes on from the last checkpoint",
                    file=sys.stderr,
                )
                distributed.leave(1)


_watchdog: Watchdog | None = None


def start(seconds: float) -> None:
    """Watch this process from now on, if it is one of several."""
    global _watchdog
    if seconds and distributed.several():
        _watchdog = Watchdog(seconds)


def begin(what: str) -> None:
    """Tell the watchdog, if there is one, that something without steps begins, or has moved on by a piece."""
    if _watchdog:
        _watchdog.begin(what, LONG)


def step(what: str) -> None:
    """Tell it that a training step begins."""
    if _watchdog:
        _watchdog.begin(what, _watchdog.seconds)
