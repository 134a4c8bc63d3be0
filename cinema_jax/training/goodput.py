"""What a run's time went to, over all its restarts."""

import dataclasses
import logging
import math
import time
from pathlib import Path

import jax

from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.inputs import typed

logger = logging.getLogger(__name__)

# Seconds of a run are steps that count, waiting for data, compiling, checkpoints, held-out evaluations, and steps that
# were done, lost with the process and done again. What is left of the wall time is starting, reports, and being down.
CATEGORIES = ("step", "data", "compile", "checkpoint", "evaluation", "lost")
# Between two writes of the file that no checkpoint asks for.
WRITE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class _Saved:
    """What the file holds."""

    started: float = 0.0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    stage: str = ""
    saved_at: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if wrong := [*(set(self.seconds) - set(CATEGORIES)), *(step for step in self.saved_at if not step.isdecimal())]:
            raise InputError(f"{wrong[0]!r} is not known")


def _read(file: Path) -> _Saved:
    try:
        return typed.checked(parts.read_json(file), _Saved, f"{file}: ")
    except InputError as error:
        # No run is to end for it.
        logger.warning("%s; the clock of this run starts anew", error)
        return _Saved()


class Goodput:
    """Books a run's time by category, in a file that outlives the process.

    Args:
        file: JSON; the first process to name it starts the run's clock.
    """

    def __init__(self, file: Path):
        self._file = file
        saved = _read(file) if file.exists() else _Saved()
        self._started: float = saved.started or time.time()
        self.seconds = dict.fromkeys(CATEGORIES, 0.0) | saved.seconds
        self._stage: str = saved.stage
        # Of the stage: seconds of steps that counted when each of its checkpoints was saved.
        self._saved_at = {int(step): seconds for step, seconds in saved.saved_at.items()}
        self._last, self._written = time.perf_counter(), -math.inf

    def begin(self, stage: str, step: int) -> None:
        """Start (or go on with) a stage at `step`: what was stepped there beyond its checkpoint is lost."""
        if stage == self._stage:
            at = max((at for at in self._saved_at if at <= step), default=None)
            self._move("step", "lost", self.seconds["step"] - self._saved_at.get(at, 0.0))
            self._saved_at = {at: seconds for at, seconds in self._saved_at.items() if at <= step}
        else:
            self._stage, self._saved_at = stage, {step: self.seconds["step"]}
        self.write()

    def resume(self) -> None:
        """Leave out the time since the last booking: it belongs to no category."""
        self._last = time.perf_counter()

    def book(self, category: str) -> None:
        """Everything since the last booking."""
        now = time.perf_counter()
        self.seconds[category] += now - self._last
        self._last = now

    def waited(self, seconds: float) -> None:
        """So much of the steps' time went to waiting for data."""
        self._move("step", "data", seconds)

    @property
    def share(self) -> float:
        """Of the time since the run's first start, the part that went to steps that count."""
        return self.seconds["step"] / max(time.time() - self._started, 1e-9)

    def write(self, saved_step: int | None = None) -> None:
        """Write the file, in the first process: at each checkpoint (of `saved_step`), and else from time to time."""
        if saved_step is not None:
            self._saved_at[saved_step] = self.seconds["step"]
        elif time.perf_counter() < self._written + WRITE_SECONDS:
            return
        if jax.process_index():
            return
        self._written = time.perf_counter()
        saved_at = {str(step): seconds for step, seconds in self._saved_at.items()}
        parts.write_json(
            self._file,
            {"started": self._started, "seconds": self.seconds, "stage": self._stage, "saved_at": saved_at},
        )

    def _move(self, source: str, target: str, seconds: float) -> None:
        self.seconds[source] -= seconds
        self.seconds[target] += seconds
