"""Stopping a run from outside: SIGINT and SIGTERM end it after a step, with everything saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from cinema_jax import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop, and can go on from where it is."""

    def __init__(self, number: int, where: str, *, alone: bool = False):
        """`alone`: other processes of the run have not agreed to stop, too."""
        super().__init__(f"stopped by {signal.Signals(number).name} {where}; the same command goes on from there")
        self.number, self.alone = number, alone


class Interruption:
    """While open, the first signal asks the run to stop; a second one ends the program at once.

    Between steps the run stops where it stands: what such work makes is made anew when the run goes on.
    """

    def __init__(self):
        self.requested: int | None = None
        self._stepping = False
        self._previous = {}
        # What the processes said after the step before.
        self._said = None

    def __enter__(self) -> "Interruption":
        # Python gives signals to the main thread alone; elsewhere (a notebook's worker) there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @contextlib.contextmanager
    def after_the_step(self) -> Iterator[None]:
        """In here a signal only sets `requested`; whoever steps looks at it after each step."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False

    def agreed(self) -> int | None:
        """The signal to stop for. Several processes must all ask after every step, and hear of it after the same one.

        They hear one step later than it is said: the device never waits for the answer.
        """
        if not distributed.several():
            return self.requested
        said, self._said = self._said, distributed.largest(self.requested or 0)
        return (int(said) or None) if said is not None else None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self.__exit__()
        if not self._stepping:
            raise Interrupted(number, "between two stages' steps", alone=True)
