"""`--profile_steps`: a trace of a few steps, for TensorBoard, XProf or Perfetto."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import jax

from cinema_jax.errors import InputError

logger = logging.getLogger(__name__)


def parse_steps(text: str, last: int) -> range:
    """The steps of `100:105` (100 to 104, counted from 1 in each stage); none of the empty text.

    Raises:
        InputError: it is not of that form, names no step, or none up to `last`, the length of the longest stage.
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(int(found[1]), int(found[2])) if found else range(0)
    if not steps or steps.start < 1 or steps.start > last:
        raise InputError(
            f"--profile_steps is {text!r}; it must be FIRST:END, for example 100:105 for the steps 100 to 104, with "
            f"FIRST from 1 to {last} and END above it"
        )
    return steps


class Profile:
    """Traces the given steps of the first stage that comes to them. The first process alone: it shows its own devices.

    Args:
        folder: where the trace goes.
        steps: numbers of steps, 1 = a stage's first; empty: no trace.
    """

    def __init__(self, folder: Path, steps: range):
        self._folder = folder
        self._steps = steps if jax.process_index() == 0 else range(0)
        self._tracing = False

    def before(self, step: int, settle: Callable[[], None]) -> None:
        """Called before each step is dispatched; `settle` waits until those before it are done."""
        if self._steps and step == self._steps.start:
            settle()
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        if self._tracing and step == self._steps.stop:
            settle()
            self.finish()

    def finish(self) -> None:
        """The stage has no more steps: write what was traced."""
        if self._tracing:
            jax.profiler.stop_trace()
            logger.info("%s: a trace of steps from %d on", self._folder, self._steps.start)
            self._tracing, self._steps = False, range(0)
