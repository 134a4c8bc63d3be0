"""Photographs as subjects: a folder of cut-out PNG pictures with alpha."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from cinema_jax.data.choices import divide
from cinema_jax.data.critters.drawing import Light, Sprite, bounds, lit, pose_matrix
from cinema_jax.data.critters.identity import Number, stable_hash
from cinema_jax.data.critters.parts import Pose
from cinema_jax.data.images import check_size, open_image
from cinema_jax.errors import InputError, fault_of


@dataclass(frozen=True)
class Cutout:
    """A picture of a subject that looks to the right; the name of the file is its noun ("red_panda.png")."""

    path: Path

    @property
    def noun(self) -> str:
        return self.path.stem.replace("_", " ").replace("-", " ").lower()

    @property
    def key(self) -> str:
        return self.path.stem

    @property
    def subject(self) -> str:
        """Whom it shows: the noun without the number, if it ends in one ("owl_2.png" is a picture of the "owl")."""
        return re.sub(r" +\d+$", "", self.noun)

    @property
    def digest(self) -> str:
        """Of the file."""
        return _digest(self.path)

    @property
    def color(self) -> str:
        """Not known."""
        return ""

    def describe(self) -> str:
        return self.noun

    def attributes(self) -> dict[str, str]:
        return {"species": self.noun}


def find_cutouts(folder: str | Path) -> list[Cutout]:
    """All pictures of a folder, by name, each checked.

    Raises:
        InputError: there is no such folder, or no PNG in it, or a picture cannot be used (the message names it).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected a folder of PNG pictures with alpha")
    cutouts = [Cutout(path) for path in sorted(folder.glob("*.png"))]
    if not cutouts:
        raise InputError(f"{folder} holds no .png file; expected one cut-out PNG with alpha per subject")
    for cutout in cutouts:
        _picture(cutout.path)
    return cutouts


def split_cutouts(cutouts: Sequence[Cutout], split: str) -> list[Cutout]:
    """The pictures of a split: of every ten subjects about eight train, one validates, one tests, as `divide` says.

    Raises:
        InputError: there are too few subjects for that.
    """
    subjects = {cutout.subject for cutout in cutouts}
    if len(subjects) < 3:
        raise InputError(
            f"{cutouts[0].path.parent} holds {len(subjects)} subject(s); at least 3 are needed, "
            "because train, validation and test never share one"
        )
    divided = divide(subjects, {"validation": 0.1, "test": 0.1, "train": 0.8})
    return [cutout for cutout in cutouts if divided[cutout.subject] == split]


def cast_of(cutouts: Sequence[Cutout], count: int, seed: int) -> list[Cutout]:
    """Pictures of so many different subjects, at random.

    One picture more changes only the casts that it plays in itself: each picture draws a number of its own, and the
    lowest play.
    """
    ranked = sorted(cutouts, key=lambda cutout: (stable_hash(f"{seed} {cutout.key}"), cutout.key))
    cast: dict[str, Cutout] = {}
    for cutout in ranked:
        cast.setdefault(cutout.subject, cutout)
    return list(cast.values())[:count]


def never_seen(cutouts: Sequence[Cutout], folder: str | Path) -> list[Cutout]:
    """Those of the pictures that a run on the pictures of `folder` neither trained on nor was chosen by."""
    there = find_cutouts(folder)
    held = {cutout.digest for cutout in split_cutouts(there, "test")}
    seen = {cutout.digest for cutout in there} - held
    return [cutout for cutout in cutouts if cutout.digest not in seen]


@lru_cache(maxsize=4096)
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@lru_cache(maxsize=256)
def _picture(path: Path) -> UInt8[np.ndarray, "height width 4"]:
    """Premultiplied RGBA, cropped to what is visible, at most 512 pixels high.

    Raises:
        InputError: the file is no picture, has no alpha, or shows nothing.
    """
    with fault_of(f"{path} is not a PNG picture that can be read"), open_image(path) as image:
        check_size(path, image.size)
        if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
            raise InputError(f"{path} has no alpha channel; save the cut-out as PNG with transparency")
        picture = np.asarray(image.convert("RGBA"))
    alpha = picture[..., 3]
    if alpha.min() > 250:
        raise InputError(f"{path} is opaque everywhere; cut the subject out so that the background is transparent")
    rows, columns = np.flatnonzero((alpha > 16).any(axis=1)), np.flatnonzero((alpha > 16).any(axis=0))
    if not len(rows):
        raise InputError(f"{path} is transparent everywhere; it must show a subject")
    picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    color = (picture[..., :3].astype(np.uint16) * picture[..., 3:] + 127) // 255
    rgba = np.concatenate([color.astype(np.uint8), picture[..., 3:]], axis=-1)
    if len(rgba) > 512:
        rgba = cv2.resize(rgba, (max(1, rgba.shape[1] * 512 // len(rgba)), 512), interpolation=cv2.INTER_AREA)
    return rgba


@lru_cache(maxsize=1024)
def _reduced(path: Path, rows: int) -> UInt8[np.ndarray, "height width 4"]:
    """The picture at about `rows` rows, with a transparent margin of two pixels for smooth edges."""
    picture = _picture(path)
    if rows < len(picture):
        width = max(1, round(picture.shape[1] * rows / len(picture)))
        picture = cv2.resize(picture, (width, rows), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(picture, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))


def draw_cutout(cutout: Cutout, pose: Pose, feet: tuple[Number, Number], height: Number, light: Light) -> Sprite:
    """The picture with its lower middle at `feet`, warped as the pose says; see `drawing.draw`."""
    aspect = _picture(cutout.path).shape[1] / _picture(cutout.path).shape[0]
    tall = 1.1 * height * min(1.0, 1.25 / aspect)  # a wide subject is no larger than the others
    source = _reduced(cutout.path, 8 * int(np.ceil(tall * 1.25 / 8)))
    # From the picture's pixels to units with the feet at the origin and y up, then by the pose into the frame.
    scale = 1 / (source.shape[0] - 4)
    unit = np.array(
        [[scale, 0, -0.5 * (source.shape[1] - 1) * scale], [0, -scale, (source.shape[0] - 2.5) * scale], [0, 0, 1]]
    )
    matrix = pose_matrix(pose, tall)
    matrix[:, 2] = feet
    low, high = bounds(matrix, (0.5 * aspect + 0.05, 1.05, 0.05))
    left, top = np.floor(low).astype(int)
    size = np.ceil(high).astype(int) - (left, top)
    matrix[:, 2] -= (left + 0.5, top + 0.5)  # OpenCV puts pixel centres at whole numbers
    rgba = cv2.warpAffine(source, matrix @ unit, (int(size[0]), int(size[1])), flags=cv2.INTER_LINEAR)
    return Sprite(lit(rgba, light), int(left), int(top))
