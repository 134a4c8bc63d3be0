"""What all sources choose alike: what is held out, which references an example shows, and in which order."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from cinema_jax.errors import InputError

Split = Literal["train", "validation", "all"]


@runtime_checkable
class Named(Protocol):
    """What has the name of an example."""

    @property
    def id(self) -> str: ...

    @property
    def group(self) -> str:
        """Where it comes from: examples of one group are held out together, or not at all."""
        ...


Entry = TypeVar("Entry", bound=Named)


def position(name: str) -> float:
    """A place in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def divide(names: Iterable[str], shares: Mapping[str, float]) -> dict[str, str]:
    """The split of each name, by the place of its hash: names that come later move none of those that are there.

    A split that would be empty gets a name of the largest one, the first one's first or else its last. Only such a name
    may move when others come.

    Args:
        names: at least as many as there are splits.
        shares: of each split, in the order in which they divide [0, 1); the last one has the rest.
    """
    splits, bounds = list(shares), np.cumsum(list(shares.values()))[:-1]
    held: dict[str, list[str]] = {split: [] for split in splits}
    for name in sorted(set(names), key=lambda name: (position(name), name)):
        held[splits[int(np.searchsorted(bounds, position(name), side="right"))]].append(name)
    for split in splits:
        if not held[split]:
            held[split].append(max(held.values(), key=len).pop(0 if split == splits[0] else -1))
    return {name: split for split, found in held.items() for name in found}


def groups_of(entries: Sequence[Named]) -> list[str]:
    """By what each entry is held out: its group, or where all are of one the entry itself."""
    groups = [entry.group for entry in entries]
    return groups if len(set(groups)) > 1 else [entry.id for entry in entries]


def ends_of(groups: Iterable[str]) -> tuple[str, str]:
    """The first and the last group by hash: all that `held_out` has to know of groups that are elsewhere."""
    ranked = sorted(groups, key=lambda group: (position(group), group))
    return ranked[0], ranked[-1]


def held_out(path: object, groups: Iterable[str], fraction: float | int, split: str) -> frozenset[str]:
    """Those of the groups that are validation: `fraction` of them by their hash, and at least one, but not all.

    Raises `InputError`, which names `path`, for a fraction that is none, or where there is but one group to divide.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"validation_fraction is {fraction}; it must be at least 0 and below 1")
    found = set(groups)
    if fraction == 0 or (split == "all" and len(found) < 2):
        return frozenset()
    if len(found) < 2:
        raise InputError(
            f"{path}: validation_fraction {fraction:g} of 1 example leaves none for training or none for validation; "
            "add examples, or set validation_fraction to 0"
        )
    divided = divide(found, {"validation": fraction, "train": 1 - fraction})
    return frozenset(group for group, its in divided.items() if its == "validation")


def entries_of_split(
    path: object, entries: Sequence[Entry], groups: Sequence[str], held: frozenset[str], split: str
) -> tuple[Entry, ...]:
    """The entries of a split, where `groups` are theirs and `held` those that are held out.

    Raises `InputError`, which names `path`, for an unknown split, and for validation where nothing is held out.
    """
    if split == "all":
        return tuple(entries)
    if split not in ("train", "validation"):
        raise InputError(f'split is "{split}"; accepted are train, validation and all')
    if split == "validation" and not held:
        raise InputError(f"{path}: there is no validation split, because validation_fraction is 0")
    return tuple(e for e, group in zip(entries, groups, strict=True) if (group in held) == (split == "validation"))


def names_all(prompt: str, names: Sequence[str]) -> bool:
    """Whether a prompt names all subjects: each has a name of its own, which stands in the prompt as whole words."""
    text, wanted = _words(prompt), sorted(map(_words, names), key=len, reverse=True)
    if len(set(wanted)) < len(wanted):
        return False
    for name in wanted:
        if name not in text:
            return False
        # "A teddy bear" names no bear.
        text = text.replace(name, " | ", 1)
    return True


def choose_views(
    prompt: str,
    subjects: Sequence[str],
    nouns: Sequence[str | None],
    max_references: int,
    second_view: float | int,
    rng: np.random.Generator,
    same_clip: Sequence[bool] = (),
    other_view: float | int = 0.0,
) -> list[int]:
    """Which references an example shows: a random view of each subject.

    In random order where the prompt names all subjects. Else only their order tells who is who, and it is kept: that
    in which the subjects first come.

    Args:
        subjects: of each reference that there is.
        nouns: what each shows; a subject without one is called by its own name.
        second_view: how often a subject with several views is shown by two, as long as `max_references` allows.
        same_clip: of each reference, whether it is cut out of the clip itself.
        other_view: how often a subject with views from the clip and from elsewhere is shown by one from elsewhere
            first, and otherwise by one of the clip; 0: by any.
    """
    views: dict[str, list[int]] = {}
    for reference, subject in enumerate(subjects):
        views.setdefault(subject, []).append(reference)
    room = max_references - len(views)
    chosen: dict[str, list[int]] = {}
    # Subjects in random order too: with room for few second views none of them is favoured.
    names = list(views)
    for name in (names[i] for i in rng.permutation(len(names))):
        order = rng.permutation(len(views[name]))
        both = len(order) > 1 and room > 0 and rng.uniform() < second_view
        room -= int(both)
        shown = [views[name][i] for i in order]
        if other_view and len({same_clip[reference] for reference in shown}) > 1:
            own_first = rng.uniform() >= other_view
            shown.sort(key=lambda reference: same_clip[reference] != own_first)
        chosen[name] = shown[: 1 + int(both)]
    called = [next((noun for i in views[name] if (noun := nouns[i])), name) for name in names]
    kept = [reference for name in names for reference in chosen[name]]
    return [kept[i] for i in rng.permutation(len(kept))] if names_all(prompt, called) else kept


def _words(text: str) -> str:
    """The words of a text between blanks, without case and punctuation."""
    return " ".join(["", *re.findall(r"\w+", text.casefold()), ""])
