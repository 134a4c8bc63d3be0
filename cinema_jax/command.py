"""What all commands share: how they start, and how they say what is wrong."""

import logging
import sys
from collections.abc import Callable

from absl import app
from absl import logging as absl_logging
from tqdm import tqdm

from cinema_jax.errors import InputError


def run(main: Callable[[], None]) -> None:
    """Run a command; bad input ends it with one sentence and exit status 2 instead of a stack trace."""

    def guarded(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"unexpected argument {arguments[1]!r}; options start with --")
        main()

    def entry(arguments: list[str]) -> None:
        _configure_logging()
        try:
            guarded(arguments)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(entry)


class _AboveBars(logging.Handler):
    """Prints a message without tearing the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _configure_logging() -> None:
    # The libraries below report every file they touch.
    absl_logging.set_verbosity(absl_logging.WARNING)
    logger = logging.getLogger("cinema_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [_AboveBars()]
