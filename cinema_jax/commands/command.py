"""What all commands share: how they start, and how they say what is wrong."""

import errno
import logging
import os
import re
import sys
import threading
import traceback
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from absl import app, flags
from absl import logging as absl_logging
from tqdm import tqdm

from cinema_jax.commands import usage
from cinema_jax.devices import distributed, peers
from cinema_jax.devices.interruption import Interrupted
from cinema_jax.errors import STORAGE_ALONE, InputError, WorkerLost, causes, passing_error

Result = TypeVar("Result")

# Errors of the disk that stay until somebody mends them; libraries below say most of them in words of their own.
LASTING_WORDS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
LASTING = (*LASTING_WORDS, errno.EACCES, errno.EPERM)
# Messages name flags as help does. Fields of a config keep their underscores.
FLAG_NAMES = re.compile(r"--([a-z]+(?:_[a-z]+)+)\b(?![.\w])")
# Large allocations in huge pages: XLA maps its temporaries anew every step, and page faults were a fifth of a CPU step.
TUNABLES = "glibc.malloc.hugetlb=1"
# transformers, of which tokenizers are used, else tells everybody without PyTorch that its models are not there.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# How a run finds its other processes: name, type, default and meaning.
PROCESS_FLAGS = (
    ("coordinator", str, None, "host:port of process 0, where processes meet; not needed on TPU pods and under SLURM."),
    ("num_processes", int, None, "Number of processes."),
    ("process_id", int, None, "Number of this process, from 0."),
    ("start_seconds", int, 300, "How long to wait, in seconds, until all processes have met."),
)
for _name, _type, _default, _help in PROCESS_FLAGS:
    (flags.DEFINE_string if _type is str else flags.DEFINE_integer)(_name, _default, _help)


def add_process_flags(parser: ArgumentParser) -> None:
    """The same flags for a command that reads its command line itself."""
    for name, kind, default, meaning in PROCESS_FLAGS:
        parser.add_argument(usage.dashed(name), dest=name, type=kind, default=default, help=meaning)
        if "_" in name:
            parser.add_argument(f"--{name}", dest=name, type=kind, default=SUPPRESS, help=SUPPRESS)


def start_processes(options: Any = flags.FLAGS) -> None:
    """Join the other processes of this command, if there are any; before jax is asked for its devices."""
    names = [name for name, *_ in PROCESS_FLAGS]
    distributed.start(**{name: getattr(options, name) for name in names})
    peers.start()


def started_after(read: Callable[[], Result]) -> Result:
    """What `read` returns, and the other processes joined; before jax is asked for its devices.

    What is wrong with it the others are to hear, too: they would wait for this process.
    """
    try:
        result = read()
    except InputError:
        start_processes()
        raise
    start_processes()
    return result


def compilation_cache_flag(default: str) -> flags.FlagHolder:
    """Defines `--compilation-cache`; `default` says where compiled programs are kept without it."""
    return flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder (or gs://) that keeps compiled programs for the next start; empty: none. By default "
        f"JAX_COMPILATION_CACHE_DIR, else {default}; on CPUs none.",
    )


class _Offload(flags.ArgumentParser):
    """False, True, or "layers"."""

    _ACCEPTED: Mapping[str, bool | str] = {"false": False, "true": True, "layers": "layers"}

    def parse(self, argument: Any) -> bool | str:
        """One of them, as it is said on a command line."""
        if str(argument).lower() not in self._ACCEPTED:
            raise ValueError("say --offload or --offload=layers")
        return self._ACCEPTED[str(argument).lower()]


def offload_flag(meaning: str) -> flags.FlagHolder:
    """Defines `--offload`, which may be said alone, and `--offload=layers`."""
    flag = flags.Flag(_Offload(), flags.ArgumentSerializer(), "offload", False, meaning, boolean=True)
    return flags.DEFINE_flag(flag)


def with_huge_pages() -> None:
    """Start the program anew with huge pages, which the C library only takes from its environment. Linux only."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def run(
    main: Callable[..., None],
    parser: Callable[[list[str]], Any] | None = None,
    *,
    required: Iterable[str] = (),
) -> None:
    """Run a command; bad input ends it with one sentence and exit status 2 instead of a stack trace.

    Args:
        main: takes nothing, or what `parser` makes of the command line.
        parser: reads the command line where absl's flags do not: for commands of several words.
        required: names of the flags that must be given.
    """

    def entry(arguments: Any) -> None:
        _configure_logging()
        try:
            if parser:
                return main(arguments)
            main()
        except InputError as error:
            # A file that could not be read for now is not a wrong one.
            _end_as(_of_storage(passing_error(error)) or peers.Word(2, str(error)))
        except Interrupted as error:
            # One that all have agreed on is told by each.
            _end(128 + error.number, str(error), str(error) if error.alone else "")
        except Exception as error:
            if word := _of_storage(error) or _of_worker(error):
                _end_as(word)
            if not distributed.several():
                raise
            # What another one says of its end tells more than the collective that failed without it.
            if word := peers.why():
                _end(word.status, f"error: {word.sentence}")
            traceback.print_exc()
            sentence = f"failed, or lost another one, with {type(error).__name__}"
            _end(1, f"error: {distributed.name()} {sentence}; {peers.GOES_ON}", sentence)

    def read(argv: list[str]) -> None:
        try:
            usage.parse(argv, required)
        except InputError as error:
            _end(2, f"error: {error}", str(error))

    distributed.quiet_without_tpu()
    if parser:
        flags.FLAGS.mark_as_parsed()
    app.run(entry, flags_parser=parser or read)


def _end(status: int, message: str, word: str = "") -> NoReturn:
    """End this process with a message; where there are others, with a word for them that ends them, too."""
    if distributed.several():
        peers.end(status, word)
    print(FLAG_NAMES.sub(lambda found: usage.dashed(found[1]), message), file=sys.stderr)
    if distributed.several():
        peers.leave(status)
    sys.exit(status)


def _end_as(word: peers.Word) -> NoReturn:
    """End this process, and the others, with what the word says."""
    _end(word.status, f"error: {word.sentence}", word.sentence)


def storage_trouble(error: BaseException | None) -> str | None:
    """The system's own words where an error, or one that led to it, is a disk that is full or not to be written."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in LASTING:
            return f"{cause.filename or 'the disk'}: {os.strerror(cause.errno)}"
        if found := _said(cause, LASTING_WORDS, LASTING):
            return f"the disk: {found}"
    return None


def passing_trouble(error: BaseException | None) -> str | None:
    """The same where it is storage that is out of reach for now: a bucket's mount, or a disk behind a network."""
    if found := passing_error(error):
        return f"{found.filename or 'the storage'}: {os.strerror(found.errno)}"
    said = (_said(cause, STORAGE_ALONE) for cause in causes(error))
    return next((f"the storage: {words}" for words in said if words), None)


def _said(error: BaseException, words: Iterable[int], numbers: Iterable[int] = ()) -> str | None:
    """What a library below says of one of these errors, in the system's words or with its number."""
    if found := next((os.strerror(number) for number in words if os.strerror(number) in str(error)), None):
        return found
    # "Permission denied" alone may be an account's; as tensorstore, Rust and Python number it, it is a file's.
    told = {int(number) for number in re.findall(r"\b(?:[Oo][Ss] error|Errno) (\d+)\b", str(error))}
    return next((os.strerror(number) for number in numbers if number in told), None)


def _of_storage(error: BaseException | None) -> peers.Word | None:
    """How a command ends for trouble of its storage: for what passes, with a status on which launchers start again."""
    if trouble := storage_trouble(error):
        return peers.Word(2, f"{trouble}; what was saved before is intact")
    if trouble := passing_trouble(error):
        return peers.Word(1, f"{trouble}, which may pass: the same command goes on from what was saved before")
    return None


def _of_worker(error: BaseException) -> peers.Word | None:
    """How a command ends that has lost a process of its own: launchers start it again."""
    lost = next((cause for cause in causes(error) if isinstance(cause, WorkerLost)), None)
    return lost and peers.Word(1, f"{lost}; the same command goes on from what was saved before")


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax's threads log the errors that they hand on: trouble of the disk is told in the main thread, once."""
    word = _of_storage(record.exc_info[1]) if record.exc_info else None
    if word and distributed.several():
        # The main thread would hear of it when Orbax has given up waiting for the others, who wait for this process.
        timer = threading.Timer(peers.GRACE_SECONDS, _end_as, [word])
        timer.daemon = True
        timer.start()
    return not word


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
