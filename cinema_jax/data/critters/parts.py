"""What the body plans share: colours of an identity, poses, eyes, legs, patterns, horns and hats."""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, sin

import numpy as np

from cinema_jax.data.critters.brush import Brush, Points, blob, curve, ellipse, polygon
from cinema_jax.data.critters.identity import Color, Identity, Number, mix, shaded

CREAM: Color = (255, 244, 220)
WHITE: Color = (255, 255, 255)
INK: Color = (40, 32, 48)
BLUSH: Color = (250, 120, 130)


@dataclass(frozen=True)
class Pose:
    """What a subject does at one moment.

    Attributes:
        phase: of the walk cycle, radians; 2 pi is two steps.
        stride: size of the steps, 0 stands still and 1 runs.
        facing: 1 looks right, -1 left; values between turn like a paper figure.
        blink: 0 eyes open, 1 closed.
        squash: height divided by its usual value; the width makes up for it.
        tilt: rotation around the feet, radians, positive leans forward.
        gaze: where the eyes look, forward and up, each in [-1, 1].
    """

    phase: float = 0.0
    stride: float = 0.0
    facing: float = 1.0
    blink: float = 0.0
    squash: float = 1.0
    tilt: float = 0.0
    gaze: tuple[Number, Number] = (0.3, 0.0)


@dataclass(frozen=True)
class Look:
    """Colours and proportions with which a body plan is painted."""

    identity: Identity
    main: Color
    accent: Color
    limb: Color  # ears, wings, fins: the accent, or a deeper tone of a plain critter
    far: Color  # limbs on the far side
    pale: Color  # snout, tail puff
    inner: Color  # inside of ears
    skin: Color  # soft parts under a shell
    dark: Color  # thin legs
    line: Color  # drawn lines on the body
    nose: Color
    hat: Color
    girth: float
    legs: float
    head: float
    ears: float


@lru_cache(maxsize=4096)
def look(identity: Identity) -> Look:
    main = shaded(identity.color, identity.shade)
    accent = shaded(identity.accent, identity.accent_shade)
    plain = identity.pattern == "plain"
    deep = mix(main, WHITE, 0.22) if identity.color == "black" else mix(main, INK, 0.16)
    limb = deep if plain else accent
    return Look(
        identity=identity,
        main=main,
        accent=accent,
        limb=limb,
        far=mix(main, INK, 0.3),
        pale=mix(main, WHITE, 0.3 if identity.color == "black" else 0.6),
        inner=mix(limb, (255, 190, 190), 0.55),
        skin=mix(main if plain else accent, CREAM, 0.5 if plain else 0.25),
        dark=mix(main, INK, 0.75),
        line=mix(main, INK, 0.6),
        nose=(238, 130, 150) if identity.color in ("black", "blue", "purple", "brown") else mix(INK, BLUSH, 0.15),
        hat=WHITE if identity.hat == "none" else shaded(identity.hat_color, 0.0),
        girth=identity.girth,
        legs=identity.legs,
        head=identity.head,
        ears=identity.ears,
    )


def torso(b: Brush, k: Look, body: Points, box: tuple[Number, Number, Number, Number]) -> None:
    """The body with soft shade below and the identity's pattern; `box` (left, bottom, right, top) bounds it."""
    shade = mix(k.main, INK, 0.2)
    b.fill(body, shade)
    with b.inside(body):
        b.fill(body + np.array((0.03, 0.07)), k.main, outline=False)
        if k.identity.pattern == "plain":
            low = body.min(axis=0)
            size = body.max(axis=0) - low
            b.fill(
                ellipse(*(low + size * (0.6, 0.8)), 0.2 * size[0], 0.09 * size[1], 0.1), mix(k.main, WHITE, 0.3), False
            )
        else:
            _PATTERNS[k.identity.pattern](b, k, box)


def _striped(b: Brush, k: Look, box: tuple[Number, Number, Number, Number]) -> None:
    left, bottom, right, top = box
    period = 0.4
    x = left - 0.15 + period * 0.5 * (k.identity.pattern_offset + 1)
    while x < right + 0.4:
        bar = curve((x - 0.06, bottom - 0.05), (x + 0.04, (bottom + top) / 2), (x - 0.02, top + 0.05))
        b.stroke(bar, 0.19, k.accent, outline=False)
        x += period


def _spotted(b: Brush, k: Look, box: tuple[Number, Number, Number, Number]) -> None:
    left, bottom, right, top = box
    step, row = 0.4, 0
    y = bottom + 0.14 + 0.04 * k.identity.pattern_offset
    while y < top + 0.05:
        x = left + (0.12 if row % 2 else 0.32)
        while x < right + 0.3:
            b.fill(ellipse(x, y, 0.125, 0.125), k.accent, outline=False)
            x += step
        y, row = y + 0.31, row + 1


def _patched(b: Brush, k: Look, box: tuple[Number, Number, Number, Number]) -> None:
    left, bottom, right, top = box
    width, height = right - left, top - bottom
    shift = 0.06 * k.identity.pattern_offset
    rear = ((-0.1, 0.2), (0.1, 0.3), (0.36, 0.55), (0.42, 0.85), (0.3, 1.2), (-0.2, 1.2))
    front = ((0.72, -0.1), (0.62, 0.2), (0.74, 0.42), (1.0, 0.4), (1.4, 0.2), (1.1, -0.2))
    for patch in (rear, front):
        b.fill(blob(*((left + width * (x + shift), bottom + height * y) for x, y in patch)), k.accent, outline=False)


_PATTERNS = {"striped": _striped, "spotted": _spotted, "patched": _patched}


def eye(b: Brush, k: Look, p: Pose, x: Number, y: Number, r: Number) -> None:
    """An eye; what kind is the identity's."""
    kind = k.identity.eyes
    r = r * (1.18 if kind == "big" else 1.0)
    if p.blink > 0.6:
        b.stroke(curve((x - 0.75 * r, y), (x, y + 0.5 * r), (x + 0.75 * r, y)), 0.04, INK, outline=False)
        return
    open_ = 1 - 0.7 * p.blink
    gx, gy = x + 0.34 * r * p.gaze[0], y + 0.34 * r * p.gaze[1]
    b.fill(ellipse(x, y, r, r * open_), WHITE)
    pupil = (0.78 if kind == "dot" else 0.6) * r
    b.fill(ellipse(gx, gy, pupil, pupil * open_), INK, outline=False)
    b.fill(ellipse(gx + 0.3 * pupil, gy + 0.36 * pupil, 0.32 * pupil, 0.32 * pupil * open_), WHITE, outline=False)
    if kind == "lashes":
        for reach in (0.55, 1.15):
            dx, dy = -cos(reach), sin(reach)
            lash = polygon((x + 0.95 * r * dx, y + 0.95 * r * dy), (x + 1.5 * r * dx, y + 1.5 * r * dy))
            b.stroke(lash, 0.03, INK, outline=False)


def mouth(b: Brush, x: Number, y: Number, r: Number) -> None:
    b.stroke(curve((x - r, y + 0.3 * r), (x, y - 0.3 * r), (x + r, y + 0.4 * r)), 0.03, INK, outline=False)


def cheek(b: Brush, k: Look, x: Number, y: Number) -> None:
    b.fill(ellipse(x, y, 0.06, 0.04), mix(k.main, BLUSH, 0.6), outline=False)


def leg(
    b: Brush,
    hip: tuple[Number, Number],
    length: Number,
    width: Number,
    color: Color,
    p: Pose,
    turn: Number,
    foot: Number = 0.03,
) -> None:
    """A leg that swings with the walk cycle, `turn` radians behind; `foot` is the length of the foot."""
    angle = 0.75 * p.stride * sin(p.phase + turn)
    lift = 0.1 * p.stride * max(0.0, cos(p.phase + turn))
    x, y = hip[0] + length * sin(angle), hip[1] - length * cos(angle) + lift
    floor = width / 2
    toe = max(floor, y + 0.3 * foot * sin(angle))
    b.stroke(polygon(hip, (x, max(floor, y)), (x + foot, toe)), width, color)


def horns(b: Brush, k: Look, x: Number, y: Number, gap: Number) -> None:
    """Two cream horns on top of a head, where the identity has them."""
    if not k.identity.horns:
        return
    for side in (-1, 1):
        base, tip = x + side * gap, x + side * (gap + 0.07)
        b.fill(blob((base - 0.065, y - 0.04), (tip - 0.02 * side, y + 0.22), (base + 0.065, y - 0.04)), CREAM)


def hat(b: Brush, k: Look, x: Number, y: Number, w: Number, lean: Number = 0.0) -> None:
    """The identity's hat, standing on (x, y), `w` its half width, rotated by `lean` radians."""
    kind = k.identity.hat
    if kind == "none":
        return
    turn = np.array([[cos(lean), sin(lean)], [-sin(lean), cos(lean)]])
    color, trim = k.hat, mix(k.hat, WHITE, 0.7) if k.identity.hat_color != "white" else (250, 200, 60)

    def place(points: Points) -> Points:
        return points * w @ turn + (x, y)

    if kind == "hat":  # a top hat
        b.fill(place(polygon((-0.66, 0.1), (-0.72, 1.35), (0.72, 1.35), (0.66, 0.1))), color)
        b.fill(place(polygon((-0.68, 0.2), (-0.69, 0.5), (0.69, 0.5), (0.68, 0.2))), trim, outline=False)
        b.fill(place(ellipse(0, 0.08, 1.2, 0.17)), color)
    elif kind == "cap":
        b.fill(place(blob((0.2, 0.2), (0.7, 0.32), (1.6, 0.12), (1.55, -0.06), (0.8, 0.0))), mix(color, INK, 0.2))
        half = ellipse(0, 0, 0.95, 0.95)
        b.fill(place(half[: len(half) // 2 + 1] * (1, 0.95)), color)
        b.fill(place(ellipse(0, 0.93, 0.16, 0.12)), trim, outline=False)
    elif kind == "crown":
        b.fill(
            place(polygon((-0.85, 0.0), (-1.0, 1.1), (-0.48, 0.6), (0.0, 1.3), (0.48, 0.6), (1.0, 1.1), (0.85, 0.0))),
            color,
        )
        for gem in (-0.98, 0.0, 0.98):
            b.fill(place(ellipse(gem, 1.32 if gem == 0 else 1.12, 0.17, 0.17)), trim, outline=False)
        b.fill(place(polygon((-0.85, 0.02), (-0.87, 0.24), (0.87, 0.24), (0.85, 0.02))), trim, outline=False)
    else:  # a cone
        b.fill(place(polygon((-0.8, 0.0), (0.0, 1.85), (0.8, 0.0))), color)
        b.stroke(place(polygon((-0.5, 0.5), (0.38, 0.75))), 0.16 * w, trim, outline=False)
        b.stroke(place(polygon((-0.32, 0.98), (0.22, 1.15))), 0.16 * w, trim, outline=False)
        b.fill(place(ellipse(0, 1.88, 0.27, 0.27)), trim)
