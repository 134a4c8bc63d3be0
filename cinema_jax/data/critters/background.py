"""Places: soft gradients and a few shapes, the same for every frame of a video; and things to hide behind."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import UInt8

from cinema_jax.data.critters.brush import Brush, Points, blob, ellipse, polygon
from cinema_jax.data.critters.drawing import DAYLIGHT, Light, Sprite, lit
from cinema_jax.data.critters.identity import Color, Number, mix

WHITE: Color = (255, 255, 255)


@dataclass(frozen=True)
class Place:
    """A kind of background.

    Attributes:
        words: how captions name it.
        light: what it does to the colours of subjects.
        thing: what one can hide behind there.
    """

    words: str
    light: Light
    thing: str


PLACES: dict[str, Place] = {
    "meadow": Place("on a meadow", DAYLIGHT, "bush"),
    "beach": Place("on the beach", (1.04, 1.0, 0.95), "rock"),
    "room": Place("in a room", (1.0, 0.96, 0.9), "box"),
    "night": Place("under the moon", (0.86, 0.88, 0.98), "bush"),
    "snow": Place("in the snow", (0.98, 1.0, 1.04), "rock"),
    "desert": Place("in the desert", (1.05, 0.98, 0.88), "rock"),
    "forest": Place("in a forest", (0.95, 1.0, 0.92), "bush"),
}


@dataclass(frozen=True)
class Background:
    """One place; the seed moves its hills, clouds and trees."""

    place: str  # key of PLACES
    seed: int

    def render(self, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
        """The picture, in a new array."""
        return _render(self.place, self.seed, height, width).copy()


@lru_cache(maxsize=8)
def _render(place: str, seed: int, height: int, width: int) -> np.ndarray:
    painter = _Painter(height, width, np.random.default_rng([seed, list(PLACES).index(place)]))
    _PAINT[place](painter)
    return painter.picture()


class _Painter:
    """A brush on an opaque canvas of twice the size; coordinates are shares of the width, and of the height from the
    top. Shapes that should be round divide x by `aspect`."""

    def __init__(self, height: int, width: int, rng: np.random.Generator):
        self.rng = rng
        self.size = (width, height)
        self.aspect = width / height
        self.canvas = np.full((2 * height, 2 * width, 4), 255, np.uint8)
        matrix = np.array([[2.0 * width, 0, -0.5], [0, 2.0 * height, -0.5]])
        self.brush = Brush(self.canvas, matrix, 2.0 * height, outline=0)

    def gradient(self, top: Color, bottom: Color, start: Number = 0.0, end: Number = 1.0) -> None:
        first, last = round(start * len(self.canvas)), round(end * len(self.canvas))
        ramp = np.linspace(0, 1, max(1, last - first))[:, None, None]
        self.canvas[first:last, :, :3] = np.array(top) * (1 - ramp) + np.array(bottom) * ramp + 0.5

    def fill(self, points: Points, color: Color) -> None:
        self.brush.fill(points, color)

    def disc(self, x: Number, y: Number, r: Number, color: Color, flat: Number = 1.0) -> None:
        self.fill(ellipse(x, y, r / self.aspect, r * flat), color)

    def hill(self, y: Number, swing: Number, color: Color, waves: Number = 1.0) -> None:
        """Everything below a wavy line around height `y`."""
        x = np.linspace(-0.05, 1.05, 40)
        phase = self.rng.uniform(0, 2 * np.pi)
        line = y + swing * np.sin(2 * np.pi * waves * x + phase) + 0.4 * swing * np.sin(5 * waves * x + 2 * phase)
        ends = np.array([[1.05, 1.2], [-0.05, 1.2]])
        self.fill(np.concatenate([np.stack([x, line], axis=1), ends]), color)

    def cloud(self, x: Number, y: Number, r: Number, color: Color) -> None:
        for dx, dy, size in ((-1.1, 0.15, 0.7), (0, -0.15, 1.0), (1.1, 0.15, 0.75)):
            self.disc(x + dx * r / self.aspect, y + dy * r, size * r, color, 0.7)

    def box(self, left: Number, top: Number, right: Number, bottom: Number, color: Color) -> None:
        self.fill(polygon((left, top), (right, top), (right, bottom), (left, bottom)), color)

    def pine(self, x: Number, y: Number, h: Number, color: Color, trunk: Color) -> None:
        w = h / self.aspect
        self.box(x - 0.06 * w, y - 0.2 * h, x + 0.06 * w, y, trunk)
        for low, half in ((0.15, 0.34), (0.4, 0.27), (0.62, 0.2)):
            floor = y - low * h
            self.fill(polygon((x - half * w, floor), (x, floor - 0.42 * h), (x + half * w, floor)), color)

    def picture(self) -> np.ndarray:
        small = cv2.resize(self.canvas, self.size, interpolation=cv2.INTER_AREA)
        # A little out of focus: the subjects are the sharp things, and a video codec or autoencoder is grateful.
        sigma = 0.006 * self.size[1]
        return np.ascontiguousarray(cv2.GaussianBlur(small, (0, 0), max(0.3, sigma))[..., :3])


def _meadow(p: _Painter) -> None:
    p.gradient((122, 196, 246), (222, 242, 250))
    p.disc(p.rng.uniform(0.1, 0.9), 0.14, 0.085, (255, 236, 150))
    p.cloud(p.rng.uniform(0.1, 0.45), p.rng.uniform(0.12, 0.25), 0.07, (250, 252, 255))
    p.cloud(p.rng.uniform(0.6, 0.95), p.rng.uniform(0.18, 0.3), 0.055, (250, 252, 255))
    p.hill(0.5, 0.05, (150, 208, 128), p.rng.uniform(0.6, 1.1))
    p.hill(0.62, 0.025, (126, 196, 98), p.rng.uniform(0.4, 0.8))
    p.hill(0.86, 0.02, (112, 184, 88), 0.5)
    for _ in range(7):
        x, y = p.rng.uniform(0, 1), p.rng.uniform(0.7, 0.98)
        p.disc(x, y, 0.014, ((255, 250, 240), (255, 226, 120), (250, 190, 210))[p.rng.integers(3)])


def _beach(p: _Painter) -> None:
    p.gradient((140, 212, 248), (236, 246, 246))
    p.disc(p.rng.uniform(0.1, 0.9), 0.16, 0.09, (255, 240, 170))
    p.gradient((52, 152, 204), (120, 208, 218), 0.42, 0.66)
    x = p.rng.uniform(0.15, 0.85)
    p.fill(polygon((x, 0.26), (x, 0.41), (x + 0.1 / p.aspect, 0.41)), WHITE)
    p.fill(polygon((x - 0.08, 0.42), (x + 0.12, 0.42), (x + 0.08, 0.46), (x - 0.05, 0.46)), (222, 96, 80))
    p.hill(0.62, 0.012, (240, 250, 246), 1.2)
    p.hill(0.645, 0.012, (246, 222, 166), 1.2)
    p.hill(0.86, 0.015, (240, 212, 150), 0.6)


def _room(p: _Painter) -> None:
    wall = ((250, 226, 190), (204, 226, 222), (240, 208, 204), (214, 220, 240))[p.rng.integers(4)]
    p.gradient(wall, mix(wall, WHITE, 0.25))
    x = p.rng.uniform(0.1, 0.6)
    w = 0.3 / p.aspect
    frame = (250, 250, 246)
    p.box(x, 0.1, x + w, 0.44, frame)
    p.box(x + 0.025, 0.13, x + w - 0.025, 0.41, (150, 208, 244))
    p.box(x + w / 2 - 0.01, 0.1, x + w / 2 + 0.01, 0.44, frame)
    p.gradient((206, 156, 108), (188, 134, 88), 0.62, 1.0)
    p.box(0, 0.6, 1, 0.635, mix(wall, WHITE, 0.6))
    rug = ((214, 110, 104), (96, 150, 190), (120, 168, 120))[p.rng.integers(3)]
    center = p.rng.uniform(0.35, 0.65)
    p.fill(ellipse(center, 0.83, 0.42, 0.13), mix(rug, WHITE, 0.35))
    p.fill(ellipse(center, 0.83, 0.36, 0.1), rug)


def _night(p: _Painter) -> None:
    p.gradient((44, 52, 116), (112, 112, 176))
    for _ in range(9):
        p.disc(p.rng.uniform(0, 1), p.rng.uniform(0.02, 0.4), 0.009, (236, 236, 214))
    x = p.rng.uniform(0.15, 0.85)
    p.disc(x, 0.17, 0.125, (92, 98, 164))
    p.disc(x, 0.17, 0.095, (255, 246, 206))
    p.disc(x + 0.025, 0.15, 0.02, (238, 226, 180))
    p.hill(0.52, 0.045, (76, 92, 148), p.rng.uniform(0.6, 1.2))
    p.hill(0.63, 0.02, (78, 118, 134), p.rng.uniform(0.4, 0.8))
    p.hill(0.86, 0.02, (68, 106, 122), 0.5)


def _snow(p: _Painter) -> None:
    p.gradient((164, 200, 232), (232, 240, 248))
    p.hill(0.5, 0.06, (206, 222, 240), p.rng.uniform(0.6, 1.1))
    for _ in range(3):
        p.pine(p.rng.uniform(0.02, 0.98), 0.64, p.rng.uniform(0.2, 0.3), (94, 148, 132), (124, 98, 84))
    p.hill(0.62, 0.02, (234, 242, 250), 0.6)
    p.hill(0.86, 0.015, (222, 233, 246), 0.5)


def _desert(p: _Painter) -> None:
    p.gradient((250, 196, 130), (253, 234, 190))
    p.disc(p.rng.uniform(0.15, 0.85), 0.2, 0.1, (255, 246, 214))
    p.hill(0.5, 0.05, (232, 160, 100), p.rng.uniform(0.7, 1.2))
    x = p.rng.uniform(0.08, 0.92)
    left, right = ((0, -0.09), (-0.06, -0.1), (-0.06, -0.16)), ((0, -0.06), (0.06, -0.07), (0.06, -0.13))
    for arm in (((0, 0), (0, -0.2)), left, right):  # a cactus
        points = np.array([(x + dx / p.aspect, 0.64 + dy) for dx, dy in arm])
        p.brush.stroke(points, 0.04, (98, 152, 92), outline=False)
    p.hill(0.62, 0.025, (240, 188, 122), 0.6)
    p.hill(0.86, 0.02, (232, 174, 106), 0.5)


def _forest(p: _Painter) -> None:
    p.gradient((176, 216, 176), (226, 240, 200))
    for x in np.arange(0.0, 1.1, 0.21) + p.rng.uniform(-0.08, 0.08):
        p.fill(polygon((x - 0.02, 0.2), (x + 0.02, 0.2), (x + 0.026, 0.64), (x - 0.026, 0.64)), (150, 118, 88))
    for x in np.arange(-0.02, 1.1, 0.17):
        p.disc(x, p.rng.uniform(0.06, 0.16), p.rng.uniform(0.13, 0.17), (94, 160, 98))
        p.disc(x + 0.08, p.rng.uniform(0.0, 0.08), 0.13, (78, 142, 90))
    p.hill(0.6, 0.02, (130, 184, 104), 0.8)
    p.hill(0.82, 0.02, (114, 168, 92), 0.5)


_PAINT: dict[str, Callable[[_Painter], None]] = {
    "meadow": _meadow,
    "beach": _beach,
    "room": _room,
    "night": _night,
    "snow": _snow,
    "desert": _desert,
    "forest": _forest,
}


def draw_thing(thing: str, feet: tuple[Number, Number], height: Number, light: Light) -> Sprite:
    """A bush, rock or box of a height in pixels, standing on `feet`; it is about 1.7 times as wide."""
    left, top = int(np.floor(feet[0] - 1.05 * height)), int(np.floor(feet[1] - 1.2 * height))
    wide, tall = int(np.ceil(2.1 * height)) + 2, int(np.ceil(1.35 * height)) + 2
    over = 4 if height < 60 else 2
    canvas = np.zeros((tall * over, wide * over, 4), np.uint8)
    matrix = np.array([[height, 0, feet[0] - left], [0, -height, feet[1] - top]]) * over
    brush = Brush(canvas, matrix, height * over, max(0.03, 0.66 / height))
    if thing == "bush":
        for x, y, r, tone in ((-0.5, 0.4, 0.38, 0), (0.5, 0.4, 0.38, 0), (0, 0.56, 0.45, 0), (-0.28, 0.3, 0.3, 1),
                              (0.3, 0.3, 0.32, 1), (0, 0.3, 0.3, 1)):  # fmt: skip
            brush.fill(ellipse(x, y, r, r), ((70, 142, 84), (84, 160, 92))[tone], outline=not tone)
        for x, y in ((-0.4, 0.5), (0.1, 0.7), (0.45, 0.42)):
            brush.fill(ellipse(x, y, 0.06, 0.06), (226, 80, 84), outline=False)
    elif thing == "rock":
        brush.fill(
            blob((-0.85, 0.0), (-0.72, 0.5), (-0.3, 0.92), (0.2, 0.96), (0.66, 0.62), (0.88, 0.0)), (150, 148, 158)
        )
        brush.fill(blob((-0.5, 0.5), (-0.24, 0.8), (0.1, 0.82), (-0.1, 0.6)), (182, 180, 188), outline=False)
    else:
        brush.fill(polygon((-0.75, 0.0), (-0.75, 0.9), (0.75, 0.9), (0.75, 0.0)), (206, 158, 104))
        brush.fill(polygon((-0.12, 0.9), (0.12, 0.9), (0.12, 0.0), (-0.12, 0.0)), (232, 196, 146), outline=False)
        brush.fill(polygon((-0.85, 0.82), (-0.85, 1.0), (0.85, 1.0), (0.85, 0.82)), (190, 140, 88))
    return Sprite(lit(cv2.resize(canvas, (wide, tall), interpolation=cv2.INTER_AREA), light), left, top)
