"""What the processes of a run tell each other beside the collectives: that they move, and why they end.

Each leaves a sign of life and, when it ends with an error, a last word in jax's key-value store. So the others end as
it does and can say who it was, instead of waiting for it in a collective. A process that is alone tells nobody.
"""

import atexit
import contextlib
import ctypes
import dataclasses
import faulthandler
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from cinema_jax.devices import distributed

# Between two looks for last words; and between two signs, a process, so that process 0 can bear thousands.
LOOK_SECONDS, SIGN_SECONDS = 1.0, 1 / 32
# Of others who end with the same error each shall say so in its own words, if it is as quick as this.
GRACE_SECONDS = 3.0
# Where a collective fails, so long is waited for a last word, or for the silence of one that was killed.
WORD_SECONDS, BRIEF_SILENCE = 10.0, 5.0
END, SIGN = "end", "sign"
GOES_ON = "the same command goes on from the last checkpoint"


@dataclasses.dataclass(frozen=True)
class Word:
    """Why a process ended, and the status that suits its end."""

    status: int
    sentence: str


class Peers:
    """This process among the others: tells them how it is doing, and hears of them, in a thread."""

    def __init__(self):
        import jax

        self.me, self.count = jax.process_index(), jax.process_count()
        self._doing, self._since = "the start", time.monotonic()
        self._host, self._signs = socket.gethostname(), 0
        # By process: its last sign, and when it was seen to change.
        self._seen: dict[int, tuple[dict, float]] = {}
        self._words: dict[int, Word] = {}
        self._left: frozenset[int] = frozenset()
        # When the store was last reached, and whether it refuses.
        self._reached, self._gone = time.monotonic(), False
        self._ending = threading.Lock()
        self._tell_sign()
        threading.Thread(target=self._listen, name="peers", daemon=True).start()
        threading.Thread(target=self._probe, name="peers-probe", daemon=True).start()

    def doing(self, what: str) -> None:
        """What was done before has ended, and `what` begins."""
        self._doing, self._since = what, time.monotonic()

    def end(self, word: Word | None) -> None:
        """This process ends by the hand of the calling thread: another one that comes here later waits for its end.

        With a word the others end, too.
        """
        self._ending.acquire()
        if self._gone or distributed.coordinator_refuses():
            return
        with contextlib.suppress(RuntimeError):
            distributed.put(f"{END}/{self.me}", dataclasses.astuple(word) if word else None)

    def others_left(self) -> bool:
        """Whether all others have ended, or cannot be heard any more."""
        try:
            return self._gone or len(distributed.told(END).keys() - {self.me}) == self.count - 1
        except RuntimeError:
            return True

    def why(self, seconds: float = WORD_SECONDS) -> Word | None:
        """Why this process lost another one: its last word, or its silence. Waits for it for so long."""
        deadline = time.monotonic() + seconds
        while True:
            if self._words:
                # A cause that a restart does not mend counts before all others.
                process, word = min(self._words.items(), key=lambda item: (item[1].status != 2, item[0]))
                return Word(word.status, f"{self._name(process)} ended: {word.sentence}")
            if self._gone:
                return Word(1, f"{self._name(0)}, by which all others meet, is gone or out of reach; {GOES_ON}")
            if silent := self.silent(BRIEF_SILENCE + 2 * self._period):
                return Word(1, f"{silent}; {GOES_ON}")
            if time.monotonic() > deadline:
                return None
            time.sleep(0.2)

    def silent(self, seconds: float) -> str | None:
        """The process that has given no sign of life for so long, in a sentence; None: all have."""
        now = time.monotonic()
        if now - self._reached > seconds:
            since = f"has not answered for {now - self._reached:.0f} s"
            return f"{self._name(0)}, by which all others meet, is gone or out of reach: it {since}"
        # Up to the last look: where this process itself was held up, it cannot tell.
        others = self._seen.keys() - self._left - {self.me}
        seen = {i: self._seen[i] for i in others if self._reached - self._seen[i][1] > seconds}
        if not seen:
            return None
        process = min(seen, key=lambda i: seen[i][1])
        sign, at = seen[process]
        return f"{self._name(process)} gives no sign of life for {now - at:.0f} s; its last was in {sign['doing']}"

    def behind(self) -> str | None:
        """The process that is behind the others in a stage's steps, in a sentence; None where no one process is."""
        if silent := self.silent(BRIEF_SILENCE + 2 * self._period):
            return silent
        signs = {i: sign for i, (sign, _) in self._seen.items()} | {self.me: self._sign()}
        steps = {i: re.fullmatch(r"(the data of )?step (\d+)( of .*)", sign["doing"]) for i, sign in signs.items()}
        if None in steps.values() or len({step[3] for step in steps.values()}) > 1:
            return None
        # A step's data come before the step.
        places = {i: (int(step[2]), not step[1]) for i, step in steps.items()}
        process = min(places, key=places.get)
        if list(places.values()).count(places[process]) > 1:
            return None
        age = signs[process]["age"] + (0 if process == self.me else time.monotonic() - self._seen[process][1])
        return f"{self._name(process)} is behind: it has been in {signs[process]['doing']} for {age:.0f} s"

    @property
    def _period(self) -> float:
        return max(LOOK_SECONDS, SIGN_SECONDS * self.count)

    def _name(self, process: int) -> str:
        host = f" ({self._seen[process][0]['host']})" if process in self._seen else ""
        return f"process {process} of {self.count}{host}"

    def _sign(self) -> dict:
        age = round(time.monotonic() - self._since, 1)
        return {"number": self._signs, "host": self._host, "doing": self._doing, "age": age}

    def _tell_sign(self) -> None:
        self._signs += 1
        distributed.put(f"{SIGN}/{self.me}", self._sign())

    def _listen(self) -> None:
        next_sign = 0.0
        while not self._ending.locked():
            try:
                if time.monotonic() >= next_sign:
                    next_sign = time.monotonic() + self._period
                    self._tell_sign()
                    self._hear_signs()
                words = distributed.told(END)
                self._reached = time.monotonic()
            except RuntimeError:
                self._gone = True
                return self._follow(LOOK_SECONDS)
            self._left = frozenset(words)
            self._words = {i: Word(*word) for i, word in words.items() if word and i != self.me}
            if self._words:
                return self._follow(GRACE_SECONDS)
            time.sleep(LOOK_SECONDS)

    def _probe(self) -> None:
        """Knock at process 0's door when the store does not answer: jax keeps it locked while it aborts for that."""
        while not self._ending.locked():
            time.sleep(LOOK_SECONDS / 2)
            if time.monotonic() - self._reached > 2 * LOOK_SECONDS and distributed.coordinator_refuses():
                self._gone = True
                return self._follow(0)

    def _hear_signs(self) -> None:
        now = time.monotonic()
        for process, sign in distributed.told(SIGN).items():
            if process not in self._seen or self._seen[process][0] != sign:
                self._seen[process] = sign, now

    def _follow(self, grace: float) -> None:
        """End this process for what happened to another one, unless its main thread does so within `grace` seconds."""
        time.sleep(grace)
        word = self.why(0)
        self.end(None)
        print(f"error: {word.sentence}", file=sys.stderr)
        leave(word.status)


_peers: Peers | None = None
# What must still be done when this process leaves before its main thread comes to it.
_last_acts: list[Callable[[], None]] = []


def start() -> None:
    """Tell and hear from now on, if this process is one of several and jax has a store that is known here."""
    global _peers
    if distributed.several() and distributed.store() is not None:
        _peers = Peers()
        # A run that is done closes the store in peace.
        atexit.register(_peers.end, None)
        _delay_aborts()


def doing(what: str) -> None:
    """Say what this process does from now on."""
    if _peers:
        _peers.doing(what)


def silent(seconds: float) -> str | None:
    """As `Peers.silent`."""
    return _peers.silent(seconds) if _peers else None


def behind() -> str | None:
    """As `Peers.behind`."""
    return _peers.behind() if _peers else None


def end(status: int, sentence: str = "") -> None:
    """This process must leave now; the others do so, too, if there is a sentence for them."""
    if _peers:
        _peers.end(Word(status, sentence) if sentence else None)


def why() -> Word | None:
    """As `Peers.why`."""
    return _peers.why() if _peers else None


@contextlib.contextmanager
def in_the_end(action: Callable[[], None]) -> Iterator[None]:
    """Do something at the end of the block, also where this process has to leave before that for another's sake."""
    _last_acts.append(action)
    try:
        yield
    finally:
        _last_acts.remove(action)
        action()


def leave(status: int) -> None:
    """End this process whatever the others do; the first one, which holds the store, once the others have ended."""
    for action in _last_acts:
        action()
    distributed.leave(status, _peers.others_left if _peers else lambda: False)


def _delay_aborts() -> None:
    """Let an abort of this process wait for some seconds, in which `Peers` can say in a sentence why it comes.

    When process 0 is gone jax aborts all others at once, from a thread of C++. The C library's own `sleep` as handler
    needs no Python, and takes the signal's number for its seconds: 6. Then the abort takes its course.
    """
    if sys.platform == "linux":
        was_enabled = faulthandler.is_enabled()
        faulthandler.disable()
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
        # It shows where Python stood, and then hands the signal on to what it found.
        if was_enabled:
            faulthandler.enable()
