"""The error a user can mend: its message is one sentence that stands without a stack trace."""

from collections.abc import Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """A file, field or value that came from outside is not what is accepted.

    Commands print the message alone; the data loader counts these and takes another example.
    """


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
