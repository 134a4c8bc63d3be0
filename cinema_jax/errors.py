"""The error a user can mend: its message is one sentence that stands without a stack trace."""

import contextlib
import errno
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# Errors of storage behind a network (a bucket's mount, NFS) that pass by themselves. Nothing but storage has the first;
# the others are a network's, and storage's where they come with a file.
STORAGE_ALONE = tuple(getattr(errno, name) for name in ("EIO", "ESTALE", "EREMOTEIO") if hasattr(errno, name))
_NETWORK = (
    *("EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN"),
    *("ENETRESET", "ENETUNREACH", "ENOLINK", "ENOTCONN", "ETIMEDOUT"),
)
NETWORK = tuple(getattr(errno, name) for name in _NETWORK if hasattr(errno, name))


class InputError(ValueError):
    """A file, field or value that came from outside is not what is accepted.

    Commands print the message alone; the data loader counts these and takes another example.
    """


class WorkerLost(RuntimeError):
    """A process that this one needs has died: no fault of the input; the same command goes on from its checkpoint."""


@contextlib.contextmanager
def fault_of(what: str, kind: type[InputError] = InputError) -> Iterator[None]:
    """Around calls of a library that reads what came from outside: whatever it raises there is the input's fault.

    Decoders and parsers raise anything on damaged input, AttributeError and IndexError of their own, MemoryError where
    a header asks for more than there is, and what Rust calls a panic, which is no `Exception`.

    Args:
        what: how the sentence begins, with the file's name: "x.mp4: this video cannot be decoded".
        kind: of the error that is raised in its place.

    Raises:
        InputError: in place of the library's error, which is its cause. Storage that is out of reach for now is raised
            as it is: it says nothing of the input.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if passing_error(error):
            raise
        raise kind(f"{what} ({_in_short(error)})") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what} ({_in_short(error)})") from error


def _in_short(error: BaseException) -> str:
    """The first line of what an error says, or what it is called."""
    said = getattr(error, "strerror", None) or str(error)
    line = next((line.strip() for line in said.splitlines() if line.strip()), "")
    line = line if len(line) <= 200 else line[:200] + "..."
    # "0" or "'x'" alone, as an IndexError or a KeyError says it, tells nobody anything.
    return line if " " in line and line.isprintable() else " ".join([type(error).__name__, ascii(line)[1:-1]]).strip()


def passing_error(error: BaseException | None) -> OSError | None:
    """The error, or one that led to it, that is storage out of reach for now; None where there is no such.

    FFmpeg's do not count: it says EIO of a file that is cut short.
    """
    for cause in causes(error):
        of_system = isinstance(cause, OSError) and not type(cause).__module__.startswith("av.")
        if of_system and (cause.errno in STORAGE_ALONE or (cause.errno in NETWORK and cause.filename)):
            return cause
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that led to it, each once: an error that was raised from itself leads in a circle."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def unsupported(said: Mapping[str, Any], fixed: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """What a published config says that is not supported, one clause each.

    Args:
        said: its fields.
        fixed: fields of which one value alone is supported.
        known: the names of all other fields that are.
    """
    others = {name: value for name, value in fixed.items() if said.get(name, value) != value}
    wrong = [f"{name} is {said[name]!r}; only {value!r} is supported" for name, value in others.items()]
    return wrong + [f"{name} is not known" for name in sorted(set(said) - {*known, *fixed})]
