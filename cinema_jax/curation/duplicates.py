"""Clips that show the same, also in other files, sizes and encodings."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from cinema_jax.errors import InputError

# Frames of a clip that are compared, and bits of each.
FRAMES, _BITS = 3, 64
# A hash is cut into so many bands. Of two that differ in fewer bits, at least one band is the same: none is missed.
_BANDS = 12


@dataclasses.dataclass(frozen=True)
class DuplicateConfig:
    """When two clips are the same.

    Attributes:
        most_bits: of the 192 of their hashes, so many may differ, from 0 to 11; -1: all clips are kept.
    """

    most_bits: int = 11

    def __post_init__(self):
        if not -1 <= self.most_bits < _BANDS:
            raise InputError(f"most_bits is {self.most_bits}; it must be from -1 to {_BANDS - 1}")


def fingerprint(frames: UInt8[np.ndarray, "frames height width 3"]) -> str:
    """The perceptual hash of a clip as 48 hexadecimal digits: of its frames at 1/4, 1/2 and 3/4 of its length."""
    count = len(frames)
    chosen = [frames[count * (i + 1) // (FRAMES + 1)] for i in range(FRAMES)]
    return np.packbits(np.concatenate([_bits(frame) for frame in chosen])).tobytes().hex()


def _bits(frame: UInt8[np.ndarray, "height width 3"]) -> np.ndarray:
    """Which of the 64 lowest frequencies of luma are above their median."""
    luma = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(luma.astype(np.float32))[:8, :8].ravel()
    # The first is the mean, which says nothing.
    return low > np.median(low[1:])


@dataclasses.dataclass(frozen=True)
class Hashed:
    """A clip as it is compared: of two that are the same, the larger stays, and of equal ones the first by its id."""

    id: str
    hash: str
    pixels: int


def duplicates(clips: Iterable[Hashed], config: DuplicateConfig) -> dict[str, str]:
    """The clips that go, each with the one that stays in its place. The order in which they come does not matter."""
    kept: list[np.ndarray] = []
    names: list[str] = []
    bands: dict[tuple[int, int], list[int]] = defaultdict(list)
    gone: dict[str, str] = {}
    if config.most_bits < 0:
        return gone
    for clip in sorted(clips, key=lambda clip: (-clip.pixels, clip.id)):
        bits = np.frombuffer(bytes.fromhex(clip.hash), np.uint8)
        keys = list(enumerate(bits.view(np.uint16).tolist()))
        near = sorted({number for key in keys for number in bands.get(key, ())})
        if (same := _first_like(bits, kept, near, config.most_bits)) is not None:
            gone[clip.id] = names[same]
            continue
        for key in keys:
            bands[key].append(len(kept))
        kept.append(bits)
        names.append(clip.id)
    return gone


def _first_like(bits: np.ndarray, kept: Sequence[np.ndarray], near: Sequence[int], most: int) -> int | None:
    if not near:
        return None
    differ = np.bitwise_count(np.stack([kept[i] for i in near]) ^ bits).sum(axis=1)
    like = np.flatnonzero(differ <= most)
    return near[like[0]] if len(like) else None
