"""What a prompt says that somebody does, and whether tracked positions show it.

Each rule compares subjects with each other or with a coarse threshold, and holds for nearly all real videos (see
docs/evaluate.md for the measured share).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from cinema_jax.data.critters.background import PLACES
from cinema_jax.data.critters.grammar import words

Positions = Float[np.ndarray, "frames K 2"]

# Of a centre, in frame heights: further than this to the side is travelling, else higher than this is a jump.
SIDEWAYS, UPWARDS = 0.2, 0.15
# What each role does; actions whose real motion is too close to a threshold are not here.
MOTION: Mapping[str, tuple[str, ...]] = {
    "walk": ("travel",),
    "run": ("travel",),
    "jump": ("jump",),
    "spin": ("stay",),
    "dance": ("stay",),
    "hide": ("travel",),
    "chase": ("travel", "travel"),
    "jump over": ("travel", "stay"),
    "hide behind": ("travel", "stay"),
    "walk around": ("travel", "stay"),
    "dance together": ("stay", "stay"),
    "walk together": ("travel", "travel"),
    "chase and watch": ("travel", "travel", "stay"),
    "jump and watch": ("travel", "stay", "stay"),
    "three dance": ("stay", "stay", "stay"),
}
# Who goes to the side that the prompt names.
_SIDED = ("walk", "run", "chase", "walk together", "three walk")


def extent(positions: Positions) -> Float[np.ndarray, "K 2"]:
    """How far each subject comes, to the side and in height."""
    return positions.max(axis=0) - positions.min(axis=0)


def motion(positions: Positions) -> list[str]:
    """What each subject does: "travel", "jump" or "stay"."""
    return ["travel" if across > SIDEWAYS else "jump" if up > UPWARDS else "stay" for across, up in extent(positions)]


def bound(action: str, positions: Positions) -> bool | None:
    """Whether the subjects, in the order of their roles, play these roles and not each other's.

    None: the action gives nobody a role of its own ("two friends dance").
    """
    if action in ("jump over", "hide behind", "walk around", "jump and watch"):
        return bool(np.hypot(*extent(positions).T).argmax() == 0)
    if action == "chase":
        return _ahead(positions)
    if action == "chase and watch":
        return bool(np.hypot(*extent(positions).T).argmin() == 2) and _ahead(positions[:, :2])
    return None


def _ahead(positions: Float[np.ndarray, "frames 2 2"]) -> bool:
    """Whether the second is further in the direction in which both go."""
    x = positions[..., 0]
    return bool((x[-1] - x[0]).sum() * (x[:, 1] - x[:, 0]).mean() > 0)


def direction(action: str, prompt: str, positions: Positions) -> bool | None:
    """Whether those who should go to a side go to that one; None where the prompt names none."""
    said = words(prompt)
    if action not in _SIDED or not {"left", "right"} & set(said):
        return None
    moved = (positions[-1, :, 0] - positions[0, :, 0]).mean()
    return bool(moved > 0) == ("right" in said)


def place(prompt: str, name: str) -> int | None:
    """The number of the place that a prompt names; None where it names none."""
    return list(PLACES).index(name) if PLACES[name].words in prompt else None
