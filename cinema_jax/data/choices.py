"""What all sources of a user's videos choose alike: the examples held out, and the views that an example shows."""

import hashlib
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from cinema_jax.errors import InputError

Split = Literal["train", "validation", "all"]


@runtime_checkable
class Named(Protocol):
    """What has the name of an example."""

    @property
    def id(self) -> str: ...


Entry = TypeVar("Entry", bound=Named)


def entries_of_split(
    path: object, entries: Sequence[Entry], split: str, fraction: float | int, may_be_empty: bool = False
) -> tuple[Entry, ...]:
    """Those of a split; `fraction` of them, by a hash of their ids, are validation: they stay when the dataset grows.

    Raises `InputError`, which names `path`, for an unknown split, a fraction that is none, or a side that is empty
    and, as the part of a larger dataset, may not be.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"validation_fraction is {fraction}; it must be at least 0 and below 1")
    if split == "all":
        return tuple(entries)
    if split not in ("train", "validation"):
        raise InputError(f'split is "{split}"; accepted are train, validation and all')
    validation = tuple(entry for entry in entries if _position(entry.id) < fraction)
    train = tuple(entry for entry in entries if _position(entry.id) >= fraction)
    if fraction == 0 and split == "validation":
        raise InputError(f"{path}: there is no validation split, because validation_fraction is 0")
    if fraction > 0 and not (train and validation) and not may_be_empty:
        raise InputError(
            f"{path}: validation_fraction {fraction:g} of {len(entries)} examples leaves {len(train)} for training and "
            f"{len(validation)} for validation; each side needs at least 1: change validation_fraction or add examples"
        )
    return train if split == "train" else validation


def choose_views(
    subjects: Sequence[str], max_references: int, second_view: float | int, rng: np.random.Generator
) -> list[int]:
    """Which references an example shows: in random order, a random view of each subject.

    Args:
        subjects: of each reference that there is.
        second_view: how often a subject with several views is shown by two, as long as `max_references` allows.
    """
    views: dict[str, list[int]] = {}
    for reference, subject in enumerate(subjects):
        views.setdefault(subject, []).append(reference)
    room = max_references - len(views)
    chosen: list[int] = []
    # Subjects in random order too: with room for few second views none of them is favoured.
    names = list(views)
    for name in (names[i] for i in rng.permutation(len(names))):
        order = rng.permutation(len(views[name]))
        both = len(order) > 1 and room > 0 and rng.uniform() < second_view
        room -= int(both)
        chosen += [views[name][i] for i in order[: 1 + int(both)]]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _position(identifier: str) -> float:
    """A place in [0, 1) that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big") / 2**64
