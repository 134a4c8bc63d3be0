"""Subjects as antialiased pictures with alpha: any place, size, tilt and light."""

from dataclasses import dataclass
from math import cos, sin

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from cinema_jax.data.critters.bodies import BODIES
from cinema_jax.data.critters.brush import Brush
from cinema_jax.data.critters.identity import Identity, Number
from cinema_jax.data.critters.parts import Pose, look

Light = tuple[Number, Number, Number]  # factors of red, green and blue
DAYLIGHT: Light = (1.0, 1.0, 1.0)
# What a subject of height 1 may cover around its feet, in its own units: half width, above, below.
_REACH = (0.98, 1.72, 0.12)


@dataclass(frozen=True)
class Sprite:
    """A premultiplied RGBA picture, to be laid on a frame with its upper left corner at (left, top)."""

    rgba: UInt8[np.ndarray, "height width 4"]
    left: int
    top: int

    def box(self) -> tuple[Number, Number, Number, Number]:
        """(left, top, right, bottom) in frame pixels of what is at least half opaque."""
        alpha = self.rgba[..., 3] > 127
        columns, rows = np.flatnonzero(alpha.any(axis=0)), np.flatnonzero(alpha.any(axis=1))
        if not len(columns):
            return (float(self.left), float(self.top), float(self.left), float(self.top))
        left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
        return (float(self.left + left), float(self.top + top), float(self.left + right), float(self.top + bottom))


def pose_matrix(pose: Pose, height: Number) -> Float[np.ndarray, "2 3"]:
    """From subject units (y up) to pixels (y down) around the feet at the origin."""
    turn = pose.facing if abs(pose.facing) > 0.12 else 0.12 * (1 if pose.facing >= 0 else -1)
    wide, tall = height * turn / np.sqrt(pose.squash), height * pose.squash
    # Leaning forward is clockwise for a subject that faces right, and mirrored for one that faces left.
    angle = pose.tilt if pose.facing >= 0 else -pose.tilt
    c, s = cos(angle), sin(angle)
    return np.array([[c * wide, s * tall, 0.0], [s * wide, -c * tall, 0.0]])


def bounds(matrix: Float[np.ndarray, "2 3"], reach: tuple[Number, Number, Number]) -> Float[np.ndarray, "2 2"]:
    """Smallest and largest (x, y) that the corners of `reach` take under `matrix`."""
    side, above, below = reach
    corners = np.array([(-side, -below), (side, -below), (side, above), (-side, above)])
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.stack([corners.min(axis=0), corners.max(axis=0)])


def draw(
    identity: Identity, pose: Pose, feet: tuple[Number, Number], height: Number, light: Light = DAYLIGHT
) -> Sprite:
    """The critter with its feet at `feet` (x, y in frame pixels, any fraction), a body about `height` pixels tall."""
    body, scale = BODIES[identity.species]
    height = height * scale
    matrix = pose_matrix(pose, height)
    matrix[:, 2] = feet
    low, high = bounds(matrix, _REACH)
    left, top = int(np.floor(low[0])), int(np.floor(low[1]))
    width, tall = int(np.ceil(high[0])) - left, int(np.ceil(high[1])) - top
    over = 4 if height < 24 else 3 if height < 128 else 2
    matrix[:, 2] -= (left, top)
    canvas = np.zeros((tall * over, width * over, 4), np.uint8)
    # Canvas pixel centres lie at whole numbers for OpenCV, so half a pixel is taken off.
    matrix = matrix * over
    matrix[:, 2] -= 0.5
    # A line is at least two thirds of a pixel wide, else small critters lose their outlines.
    body(Brush(canvas, matrix, height * over, max(0.03, 0.66 / height), height * over < 160), look(identity), pose)
    rgba = cv2.resize(canvas, (width, tall), interpolation=cv2.INTER_AREA)
    return Sprite(lit(rgba, light), left, top)


def lit(rgba: UInt8[np.ndarray, "height width 4"], light: Light) -> UInt8[np.ndarray, "height width 4"]:
    """The picture under a light; opacity stays, and no colour exceeds it (premultiplied)."""
    if light == DAYLIGHT:
        return rgba
    color = np.minimum(rgba[..., :3] * np.array(light, np.float32), rgba[..., 3:])
    return np.concatenate([color.astype(np.uint8), rgba[..., 3:]], axis=-1)


def paste(frame: UInt8[np.ndarray, "height width 3"], sprite: Sprite) -> None:
    """Lays the sprite over the frame, in place; what is outside the frame is cut off."""
    height, width = frame.shape[:2]
    tall, wide = sprite.rgba.shape[:2]
    x0, y0 = max(0, sprite.left), max(0, sprite.top)
    x1, y1 = min(width, sprite.left + wide), min(height, sprite.top + tall)
    if x0 >= x1 or y0 >= y1:
        return
    part = sprite.rgba[y0 - sprite.top : y1 - sprite.top, x0 - sprite.left : x1 - sprite.left]
    below = frame[y0:y1, x0:x1]
    rest = (255 - part[..., 3:]).astype(np.uint16)
    below[...] = part[..., :3] + ((below * rest + 127) // 255).astype(np.uint8)


def through_lens(picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """The picture as a camera would take it, without detail finer than its pixels.

    Pixels averaged over their own area alone still alias: fine lines flicker as they move, and cost an autoencoder
    more than everything else (48 principal components of 4 frames of 8x8 pixels: 22.7 dB without, 27.9 dB with it).
    """
    return cv2.GaussianBlur(picture, (0, 0), 0.8)
