"""The error a user can mend: its message is one sentence that stands without a stack trace."""

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
