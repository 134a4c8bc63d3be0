"""Stopping a run from outside: SIGINT and SIGTERM end it after a step, with everything saved."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from tqdm import tqdm

from cinema_jax.devices import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop, and can go on from where it is."""

    def __init__(self, number: int, where: str, *, alone: bool = False):
        """`alone`: other processes of the run have not agreed to stop, too."""
        super().__init__(f"stopped by {signal.Signals(number).name} {where}; the same command goes on from there")
        self.number, self.alone = number, alone


class Interruption:
    """While open, the first signal asks the run to stop; a second one ends the program at once.

    Between steps the run stops where it stands: what such work makes is made anew when the run goes on. Every signal is
    answered by a line at once, also while the compiler or a device keeps the main thread.
    """

    def __init__(self):
        self.requested: int | None = None
        self._stepping = False
        self._previous = {}
        self._listener: _Listener | None = None
        # What the processes said after the step before.
        self._said = None

    def __enter__(self) -> "Interruption":
        # Python gives signals to the main thread alone; elsewhere (a notebook's worker) there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            self._listener = _Listener(self._answer)
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self._listener:
            self._listener.close()
            self._listener = None

    @contextlib.contextmanager
    def after_the_step(self) -> Iterator[None]:
        """In here a signal only sets `requested`; whoever steps looks at it after each step."""
        self._stepping = True
        try:
            yield
        finally:
            self._stepping = False
        # It came with the last step. Several processes must hear of it together, which they do in the next stage.
        if self.requested is not None and not distributed.several():
            raise Interrupted(self.requested, "after the last step of a stage")

    def agreed(self) -> int | None:
        """The signal to stop for. Several processes must all ask after every step, and hear of it after the same one.

        They hear one step later than it is said: the device never waits for the answer.
        """
        if not distributed.several():
            return self.requested
        said, self._said = self._said, distributed.largest(self.requested or 0)
        return (int(said) or None) if said is not None else None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = number
            if not self._stepping:
                raise Interrupted(number, "between two stages' steps", alone=True)

    def _answer(self, number: int) -> None:
        what = "stopping after this step" if self._stepping else "stopping"
        _say(f"{signal.Signals(number).name}: {what}; once more ends it now")


class _Listener:
    """Hears signals in a thread of its own: Python's handlers wait until the main thread is back from native code."""

    # A second signal this soon is the same wish, told to a process and to its group. Seconds.
    _ECHO = 0.5

    def __init__(self, answer):
        self._answer = answer
        self._reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hand signals back to whoever heard them before."""
        signal.set_wakeup_fd(self._before)
        self._writing.close()
        self._thread.join()
        self._reading.close()

    def _listen(self) -> None:
        # Each signal is one byte, its number; none when the other end is closed.
        while data := self._reading.recv(1):
            if (number := data[0]) in SIGNALS:
                self._answer(number)
                time.sleep(self._ECHO)
                with contextlib.suppress(BlockingIOError):
                    self._reading.recv(4096, socket.MSG_DONTWAIT)
                break
        while data := self._reading.recv(1):
            if (number := data[0]) in SIGNALS:
                _say(f"{signal.Signals(number).name}: ended; the same command goes on from the last checkpoint")
                os._exit(128 + number)


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
