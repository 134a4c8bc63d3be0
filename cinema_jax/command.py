"""What all commands share: how they start, and how they say what is wrong."""

import errno
import logging
import os
import re
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from tqdm import tqdm

from cinema_jax import distributed
from cinema_jax.errors import STORAGE_ALONE, InputError, passing_error
from cinema_jax.training.interruption import Interrupted

# Errors of the disk that stay until somebody mends them; libraries below say most of them in words of their own.
LASTING_WORDS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
LASTING = (*LASTING_WORDS, errno.EACCES, errno.EPERM)
# Large allocations in huge pages: XLA maps its temporaries anew every step, and page faults were a fifth of a CPU step.
TUNABLES = "glibc.malloc.hugetlb=1"
# How a run finds its other processes: name, type, default and meaning.
PROCESS_FLAGS = (
    ("coordinator", str, None, "host:port of process 0, where several processes meet; TPU pods and SLURM need none."),
    ("num_processes", int, None, "How many processes there are."),
    ("process_id", int, None, "Which of them this is, from 0."),
    ("start_seconds", int, 300, "How long to wait until all processes have met."),
)
for _name, _type, _default, _help in PROCESS_FLAGS:
    (flags.DEFINE_string if _type is str else flags.DEFINE_integer)(_name, _default, _help)


def add_process_flags(parser: ArgumentParser) -> None:
    """The same flags for a command that reads its command line itself."""
    for name, kind, default, meaning in PROCESS_FLAGS:
        parser.add_argument(f"--{name}", type=kind, default=default, help=meaning)


def start_processes(options: Any = flags.FLAGS) -> None:
    """Join the other processes of this command, if there are any; before jax is asked for its devices."""
    names = [name for name, *_ in PROCESS_FLAGS]
    distributed.start(**{name: getattr(options, name) for name in names})


def compilation_cache_flag(default: str) -> flags.FlagHolder:
    """Defines `--compilation_cache`; `default` says where compiled programs are kept without it."""
    return flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder (or gs://) that keeps compiled programs for the next start; empty: none. By default "
        f"JAX_COMPILATION_CACHE_DIR or else {default}, and on CPUs none.",
    )


def with_huge_pages() -> None:
    """Start the program anew with huge pages, which the C library only takes from its environment. Linux only."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run(main: Callable[..., None], parser: Callable[[list[str]], Any] | None = None) -> None:
    """Run a command; bad input ends it with one sentence and exit status 2 instead of a stack trace.

    Args:
        main: takes nothing, or what `parser` makes of the command line.
        parser: reads the command line where absl's flags do not: for commands of several words.
    """

    def entry(arguments: Any) -> None:
        _configure_logging()
        try:
            if parser:
                return main(arguments)
            if len(arguments) > 1:
                raise app.UsageError(f"unexpected argument {arguments[1]!r}; options start with --")
            main()
        except InputError as error:
            # A file that could not be read for now is not a wrong one.
            _end_if_it_passes(passing_error(error))
            print(f"error: {error}", file=sys.stderr)
            _end(2)
        except Interrupted as error:
            print(error, file=sys.stderr)
            _end(128 + error.number)
        except Exception as error:
            if trouble := storage_trouble(error):
                print(f"error: {trouble}; what was saved before is intact", file=sys.stderr)
                _end(2)
            _end_if_it_passes(error)
            if not distributed.several():
                raise
            traceback.print_exc()
            print(
                f"error: {distributed.name()} failed, or lost another one, with {type(error).__name__}; the same "
                "command goes on from the last checkpoint",
                file=sys.stderr,
            )
            _end(1)

    if parser:
        flags.FLAGS.mark_as_parsed()
        return app.run(entry, flags_parser=parser)
    app.run(entry, argv=[underscored(argument) for argument in sys.argv])


def _end(status: int) -> NoReturn:
    if distributed.several():
        distributed.leave(status)
    sys.exit(status)


def underscored(argument: str) -> str:
    """`--guidance-text=2` as `--guidance_text=2`, which is how absl spells it."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def storage_trouble(error: BaseException | None) -> str | None:
    """The system's own words where an error, or one that led to it, is a disk that is full or not to be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in LASTING:
            return f"{error.filename or 'the disk'}: {os.strerror(error.errno)}"
        if found := _said(error, LASTING_WORDS, LASTING):
            return f"the disk: {found}"
        error = error.__cause__ or error.__context__
    return None


def passing_trouble(error: BaseException | None) -> str | None:
    """The same where it is storage that is out of reach for now: a bucket's mount, or a disk behind a network."""
    if found := passing_error(error):
        return f"{found.filename or 'the storage'}: {os.strerror(found.errno)}"
    while error is not None:
        if said := _said(error, STORAGE_ALONE):
            return f"the storage: {said}"
        error = error.__cause__ or error.__context__
    return None


def _said(error: BaseException, words: Iterable[int], numbers: Iterable[int] = ()) -> str | None:
    """What a library below says of one of these errors, in the system's words or with its number."""
    if found := next((os.strerror(number) for number in words if os.strerror(number) in str(error)), None):
        return found
    # "Permission denied" alone may be an account's; as tensorstore, Rust and Python number it, it is a file's.
    told = {int(number) for number in re.findall(r"\b(?:[Oo][Ss] error|Errno) (\d+)\b", str(error))}
    return next((os.strerror(number) for number in numbers if number in told), None)


def _end_if_it_passes(error: BaseException | None) -> None:
    """Trouble that passes ends the command with a status on which launchers start it again."""
    if trouble := passing_trouble(error):
        print(f"error: {trouble}, which may pass: the same command goes on from what was saved before", file=sys.stderr)
        _end(1)


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax's threads log the errors that they hand on: trouble of the disk is told in the main thread, once."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not (storage_trouble(error) or passing_trouble(error))


class _AboveBars(logging.Handler):
    """Prints a message without tearing the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _configure_logging() -> None:
    # The libraries below report every file they touch.
    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_logger().addFilter(_is_news)
    logger = logging.getLogger("cinema_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [_AboveBars()]
