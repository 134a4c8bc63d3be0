"""Ends a process whose run has stopped moving, so that a dead or hung host ends the job instead of hanging it.

The run says what it begins and how long that may take; a thread waits for the next word, and for signs of life of the
other processes. Those that are dead are noticed by their silence, those that hang, or a collective that never returns,
by the limit of what was begun.
"""

import faulthandler
import sys
import threading
import time

from cinema_jax.devices import distributed, peers

# For what has no steps or compiles anew: an evaluation, a checkpoint, a batch of samples.
LONG = 1800.0
# Without a sign of life for so long a process is taken for dead: before jax does so, which would abort without a name.
SILENT = 60.0


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
        peers.doing(what)

    def _watch(self) -> None:
        suspected = False
        while True:
            time.sleep(min(1.0, self.seconds / 4))
            what, limit, deadline = self._now
            silent = peers.silent(SILENT)
            # Twice: a process that was held up itself looks anew first.
            if silent and suspected:
                self._end(f"{silent}; {peers.GOES_ON}")
            suspected = bool(silent)
            if time.monotonic() > deadline:
                faulthandler.dump_traceback()
                behind = peers.behind()
                cause = f"; {behind}" if behind else ", so a host is lost or hangs"
                self._end(
                    f"{distributed.name()} waited more than {limit:g} s in {what}{cause} (the stacks above say where "
                    f"this one stands; longer steps need a larger --hang_seconds); {peers.GOES_ON}"
                )

    def _end(self, sentence: str) -> None:
        peers.end(1, sentence)
        print(f"error: {sentence}", file=sys.stderr)
        peers.leave(1)


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
