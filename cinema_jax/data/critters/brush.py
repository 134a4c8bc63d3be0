"""Antialiased flat shapes with outlines, painted in a subject's own coordinates.

Shapes are filled on a canvas a few times larger than the picture and reduced by area: edges are smooth at any
position, scale and rotation, and clipping (a pattern inside a body) stays exact.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from cinema_jax.data.critters.identity import Color, Number, mix

# Pictures this small gain nothing from OpenCV's threads, and data workers would fight over the cores.
cv2.setNumThreads(1)

Points = Float[np.ndarray, "points 2"]

_ANGLES = np.arange(36) * (2 * np.pi / 36)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_INK: Color = (44, 34, 52)
_SHIFT = 4  # OpenCV takes fixed point coordinates: 4 bits are 1/16 of a canvas pixel


def ellipse(x: Number, y: Number, rx: Number, ry: Number, angle: Number = 0.0) -> Points:
    """An ellipse around (x, y), rotated by `angle` radians."""
    points = _CIRCLE * (rx, ry)
    if angle:
        cos, sin = np.cos(angle), np.sin(angle)
        points = points @ np.array([[cos, sin], [-sin, cos]])
    return points + np.array((x, y))


@cache
def _spline(count: int, closed: bool, steps: int) -> np.ndarray:
    """Weights of a Catmull-Rom spline: [points on the curve, control points]."""
    t = np.arange(steps) / steps
    basis = 0.5 * np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1)
    segments = count if closed else count - 1
    weights = np.zeros((segments * steps + (not closed), count))
    for segment in range(segments):
        for k in range(4):
            control = segment + k - 1
            control = control % count if closed else min(max(control, 0), count - 1)
            weights[segment * steps : (segment + 1) * steps, control] += basis[:, k]
    if not closed:
        weights[-1, -1] = 1
    return weights


def blob(*points: tuple[Number, Number]) -> Points:
    """A smooth closed curve through the points."""
    return _spline(len(points), True, 6) @ np.array(points, float)


def curve(*points: tuple[Number, Number]) -> Points:
    """A smooth open curve through the points."""
    return _spline(len(points), False, 6) @ np.array(points, float)


def polygon(*points: tuple[Number, Number]) -> Points:
    return np.array(points, float)


def _ink(color: Color) -> tuple[int, ...]:
    """The opaque dark tone in which a shape of this colour is outlined."""
    return (*mix(color, _INK, 0.42), 255)


class Brush:
    """Paints on a premultiplied RGBA canvas.

    Args:
        canvas: [height width 4], usually all zero.
        matrix: [2 3], from subject units (x forward, y up, feet at y = 0) to canvas pixels.
        unit: canvas pixels per subject unit, for the thickness of lines.
        outline: width of outlines in subject units; 0 draws none.
        coarse: half the points of curves are enough (for a small picture).
    """

    def __init__(
        self,
        canvas: UInt8[np.ndarray, "height width 4"],
        matrix: Float[np.ndarray, "2 3"],
        unit: Number,
        outline: Number = 0.035,
        coarse: bool = False,
    ):
        self.canvas = canvas
        self.linear = np.ascontiguousarray(matrix[:, :2].T) * (1 << _SHIFT)
        self.offset = matrix[:, 2] * (1 << _SHIFT)
        self.unit = unit
        self.outline = outline
        self.coarse = coarse

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        if self.coarse and len(points) >= 24:
            points = points[::2]
        return (points @ self.linear + self.offset).astype(np.int32)

    def _width(self, width: Number) -> int:
        return max(1, round(width * self.unit))

    def fill(self, points: Points, color: Color, outline: bool = True) -> None:
        """A closed shape; its outline lies outside the points, in a dark tone of the colour."""
        pixels = self._pixels(points)
        if outline and self.outline:
            ink = _ink(color)
            cv2.polylines(self.canvas, [pixels], True, ink, self._width(2 * self.outline), cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self.canvas, [pixels], (*color, 255), cv2.LINE_8, _SHIFT)

    def stroke(self, points: Points, width: Number, color: Color, outline: bool = True) -> None:
        """An open line of a width with round ends (limbs, tails)."""
        pixels = [self._pixels(points)]
        if outline and self.outline:
            ink = _ink(color)
            thick = self._width(width + 2 * self.outline)
            cv2.polylines(self.canvas, pixels, False, ink, thick, cv2.LINE_8, _SHIFT)
        cv2.polylines(self.canvas, pixels, False, (*color, 255), self._width(width), cv2.LINE_8, _SHIFT)

    @contextmanager
    def inside(self, *shapes: Points) -> Iterator[None]:
        """What is painted within the context stays inside the union of the shapes."""
        mask = np.zeros(self.canvas.shape[:2], np.uint8)
        low, high = np.array(mask.shape[::-1]), np.zeros(2, int)
        for points in shapes:
            pixels = self._pixels(points)
            cv2.fillPoly(mask, [pixels], 255, cv2.LINE_8, _SHIFT)
            low = np.minimum(low, (pixels.min(0) >> _SHIFT) - 1)
            high = np.maximum(high, (pixels.max(0) >> _SHIFT) + 2)
        (left, top), (right, bottom) = np.maximum(low, 0), np.maximum(high, 0)
        whole, offset = self.canvas, self.offset
        part = whole[top:bottom, left:right]
        before = part.copy()
        self.canvas, self.offset = part, offset - np.array((left, top)) * (1 << _SHIFT)
        yield
        self.canvas, self.offset = whole, offset
        if before.size:
            cv2.copyTo(before, cv2.bitwise_not(mask[top:bottom, left:right]), part)
