"""The body plans: each species as a few shapes, facing right, feet at y = 0, about one unit tall."""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np

from cinema_jax.data.critters.brush import Brush, blob, curve, ellipse, polygon
from cinema_jax.data.critters.identity import mix
from cinema_jax.data.critters.parts import CREAM, Look, Pose, cheek, eye, hat, horns, leg, mouth, torso

BEAK = (250, 168, 40)


def bird(b: Brush, k: Look, p: Pose) -> None:
    g, flap = 0.04 * k.girth, sin(2 * p.phase) * (0.35 * p.stride)
    for side in (1, 0):
        leg(b, (0.02 + 0.1 * side - 0.03, 0.25), 0.27, 0.05, BEAK, p, side * pi, foot=0.12)
    b.fill(blob((-0.26, 0.5), (-0.62, 0.78), (-0.7, 0.64), (-0.66, 0.5), (-0.3, 0.34)), k.limb)
    b.fill(polygon((0.36, 0.76), (0.64, 0.64), (0.36, 0.56)), BEAK)
    body = blob((-0.38, 0.5), (-0.18, 0.7), (0.02, 0.92), (0.24, 0.98), (0.42, 0.86), (0.46, 0.64), (0.4, 0.36),
                (0.2, 0.2 - g), (-0.06, 0.16 - g), (-0.3, 0.26 - g))  # fmt: skip
    torso(b, k, body, (-0.42, 0.12, 0.3, 0.74))
    wing = ellipse(-0.2, 0, 0.25, 0.14, 0.25)
    angle = -0.2 + flap
    turn = np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])
    b.fill(wing @ turn + (0.1, 0.45), k.limb)
    cheek(b, k, 0.34, 0.62)
    eye(b, k, p, 0.25, 0.76, 0.105)
    horns(b, k, 0.2, 0.95, 0.16)
    hat(b, k, 0.2, 0.93, 0.22, 0.05)


def cat(b: Brush, k: Look, p: Pose) -> None:
    g, sway = 0.03 * k.girth, 0.06 * sin(p.phase)
    b.stroke(curve((-0.44, 0.4), (-0.62, 0.52), (-0.64 + sway, 0.78), (-0.5 + 1.6 * sway, 0.95)), 0.1, k.limb)
    for x, turn in ((-0.3, 0.5 * pi), (0.2, 1.5 * pi)):
        leg(b, (x, 0.3), 0.28, 0.12, k.far, p, turn)
    for x, turn in ((-0.38, 0.0), (0.12, pi)):
        leg(b, (x, 0.3), 0.28, 0.12, k.main, p, turn)
    body = blob((-0.5, 0.4), (-0.36, 0.58 + g), (0.0, 0.58 + g), (0.28, 0.6), (0.34, 0.34), (0.1, 0.2 - g), (-0.4, 0.2))
    torso(b, k, body, (-0.52, 0.16, 0.16, 0.66))
    e = 0.04 * k.ears
    b.fill(polygon((0.14, 0.76), (0.12, 1.08 + e), (0.38, 0.9)), k.limb)
    b.fill(polygon((0.62, 0.74), (0.68, 1.08 + e), (0.42, 0.9)), k.limb)
    b.fill(ellipse(0.39, 0.7, 0.31 + 0.02 * k.head, 0.25), k.main)
    b.fill(ellipse(0.47, 0.59, 0.13, 0.085), k.pale, outline=False)
    eye(b, k, p, 0.3, 0.73, 0.09)
    eye(b, k, p, 0.54, 0.73, 0.09)
    b.fill(polygon((0.43, 0.65), (0.51, 0.65), (0.47, 0.6)), k.nose, outline=False)
    mouth(b, 0.47, 0.56, 0.05)
    cheek(b, k, 0.2, 0.62)
    horns(b, k, 0.4, 0.92, 0.17)
    hat(b, k, 0.4, 0.93, 0.2)


def rabbit(b: Brush, k: Look, p: Pose) -> None:
    g, flop = 0.03 * k.girth, 0.08 * sin(2 * p.phase) * p.stride
    b.fill(ellipse(-0.35, 0.26, 0.12, 0.12), k.pale)
    leg(b, (0.04, 0.2), 0.18, 0.13, k.far, p, pi, foot=0.2)
    body = ellipse(-0.06, 0.31, 0.27 + g, 0.28)
    torso(b, k, body, (-0.36, 0.03, 0.24, 0.6))
    leg(b, (-0.12, 0.2), 0.18, 0.15, k.main, p, 0.0, foot=0.22)
    e = 0.08 * k.ears
    for x, tone, inner in ((0.02, k.limb, 0.12), (0.2, k.limb, 0.12)):
        top = (x - 0.16 - flop, 1.2 + e)
        middle, angle = ((x + top[0]) / 2, (0.76 + top[1]) / 2), pi / 2 + 0.3
        b.fill(ellipse(*middle, 0.26 + e / 2, 0.085, angle), tone)
        b.fill(ellipse(*middle, 0.18 + e / 2, inner * 0.35, angle), k.inner, outline=False)
    b.fill(ellipse(0.16, 0.66, 0.27 + 0.02 * k.head, 0.22), k.main)
    b.fill(ellipse(0.29, 0.58, 0.11, 0.08), k.pale, outline=False)
    eye(b, k, p, 0.12, 0.7, 0.085)
    eye(b, k, p, 0.33, 0.7, 0.085)
    b.fill(ellipse(0.31, 0.62, 0.035, 0.025), k.nose, outline=False)
    b.fill(polygon((0.27, 0.56), (0.33, 0.56), (0.33, 0.48), (0.27, 0.48)), (255, 255, 255), outline=False)
    cheek(b, k, 0.02, 0.59)
    hat(b, k, 0.25, 0.84, 0.19, -0.15)
    swing = 0.1 * sin(p.phase) * p.stride
    b.stroke(curve((0.02, 0.38), (0.14, 0.3 + swing), (0.22, 0.33 + swing)), 0.11, k.main)


def bear(b: Brush, k: Look, p: Pose) -> None:
    g, swing = 0.03 * k.girth, 0.12 * sin(p.phase) * p.stride
    b.stroke(curve((0.2, 0.46), (0.36, 0.4 - swing), (0.42, 0.3 - swing)), 0.15, k.far)
    leg(b, (0.14, 0.2), 0.14, 0.2, k.far, p, pi, foot=0.06)
    leg(b, (-0.13, 0.2), 0.14, 0.2, k.main, p, 0.0, foot=0.06)
    torso(b, k, ellipse(0, 0.33, 0.31 + g, 0.27), (-0.34, 0.06, 0.34, 0.6))
    b.stroke(curve((-0.2, 0.46), (-0.34, 0.38 + swing), (-0.36, 0.26 + swing)), 0.15, k.main)
    e = 0.02 * k.ears
    for x in (-0.2, 0.3):
        b.fill(ellipse(x, 0.95, 0.12 + e, 0.12 + e), k.limb)
        b.fill(ellipse(x, 0.95, 0.06, 0.06), k.inner, outline=False)
    b.fill(ellipse(0.05, 0.76, 0.31 + 0.02 * k.head, 0.25), k.main)
    b.fill(ellipse(0.14, 0.66, 0.15, 0.11), k.pale, outline=False)
    eye(b, k, p, -0.04, 0.78, 0.08)
    eye(b, k, p, 0.22, 0.78, 0.08)
    b.fill(ellipse(0.16, 0.71, 0.06, 0.04), k.nose, outline=False)
    mouth(b, 0.16, 0.62, 0.05)
    cheek(b, k, -0.15, 0.68)
    horns(b, k, 0.05, 0.98, 0.12)
    hat(b, k, 0.05, 0.98, 0.22)


def snail(b: Brush, k: Look, p: Pose) -> None:
    creep, r = 0.04 * sin(p.phase) * p.stride, 0.37 + 0.02 * k.girth
    skin = k.skin
    for dx, tip in ((0.0, 0.0), (0.14, 0.14)):
        b.stroke(curve((0.46 + dx, 0.4), (0.47 + dx, 0.6), (0.47 + tip + 0.05, 0.74 + creep)), 0.055, skin)
    slug = blob((-0.72 - creep, 0.03), (-0.5, 0.14), (0.1, 0.2), (0.3, 0.34), (0.42, 0.48), (0.6, 0.46), (0.66, 0.32),
                (0.52, 0.08), (0.44, 0.0), (-0.3, 0.0))  # fmt: skip
    b.fill(slug, skin)
    shell = ellipse(-0.12, 0.47, r, r)
    torso(b, k, shell, (-0.5, 0.1, 0.26, 0.86))
    turns = np.linspace(0, 3.6 * pi, 26)
    radius = r * (0.86 - 0.8 * turns / turns[-1])
    spiral = np.stack([-0.12 + radius * np.cos(turns - 1.2), 0.47 + radius * np.sin(turns - 1.2)], axis=1)
    b.stroke(spiral, 0.035, mix(k.main, (44, 34, 52), 0.55), outline=False)
    eye(b, k, p, 0.51, 0.78 + creep, 0.085)
    eye(b, k, p, 0.67, 0.76 + creep, 0.085)
    mouth(b, 0.55, 0.3, 0.06)
    hat(b, k, -0.12, 0.82, 0.22)


def fish(b: Brush, k: Look, p: Pose) -> None:
    g, wag = 0.03 * k.girth, 0.12 * sin(2 * p.phase)
    b.fill(blob((-0.34, 0.48), (-0.66, 0.8 + wag), (-0.76, 0.7 + wag), (-0.6, 0.48 + wag / 2), (-0.76, 0.24 + wag),
                (-0.66, 0.14 + wag)), k.limb)  # fmt: skip
    b.fill(blob((-0.28, 0.7), (-0.2, 0.94), (0.02, 0.96), (0.2, 0.8)), k.limb)
    b.fill(polygon((-0.08, 0.2), (-0.16, 0.02), (0.12, 0.16)), k.limb)
    body = blob((-0.44, 0.48), (-0.2, 0.74 + g), (0.16, 0.82 + g), (0.46, 0.68), (0.58, 0.48), (0.44, 0.26),
                (0.14, 0.14 - g), (-0.2, 0.22 - g))  # fmt: skip
    torso(b, k, body, (-0.46, 0.12, 0.2, 0.84))
    fin = 0.1 * sin(2 * p.phase + 1)
    b.fill(blob((0.08, 0.42), (-0.14, 0.36 + fin), (-0.16, 0.24 + fin), (0.06, 0.3)), k.limb)
    eye(b, k, p, 0.34, 0.58, 0.11)
    mouth(b, 0.48, 0.4, 0.07)
    cheek(b, k, 0.3, 0.42)
    horns(b, k, 0.22, 0.8, 0.13)
    hat(b, k, 0.2, 0.79, 0.22, -0.1)


def octopus(b: Brush, k: Look, p: Pose) -> None:
    r = 0.02 * k.girth
    for index, (x, tone) in enumerate(((-0.2, k.far), (0.22, k.far), (-0.3, k.limb), (-0.1, k.limb), (0.1, k.limb),
                                       (0.3, k.limb))):  # fmt: skip
        wave = 0.07 * sin(p.phase + 1.3 * index) * (0.5 + p.stride)
        spread = x * 1.5 + wave
        b.stroke(curve((x, 0.42), (x * 1.2 - wave, 0.2), (spread, 0.07), (spread + 0.1 * np.sign(x), 0.1)), 0.12, tone)
    head = blob((-0.36 - r, 0.62), (-0.28, 0.88), (0.0, 1.0), (0.28, 0.88), (0.36 + r, 0.62), (0.3, 0.4), (0, 0.34),
                (-0.3, 0.4))  # fmt: skip
    torso(b, k, head, (-0.4, 0.3, 0.4, 1.0))
    eye(b, k, p, -0.02, 0.62, 0.11)
    eye(b, k, p, 0.22, 0.62, 0.11)
    mouth(b, 0.11, 0.46, 0.06)
    cheek(b, k, -0.16, 0.5)
    horns(b, k, 0.0, 0.94, 0.18)
    hat(b, k, 0.0, 0.95, 0.23)


def beetle(b: Brush, k: Look, p: Pose) -> None:
    g, wiggle = 0.03 * k.girth, 0.05 * sin(p.phase)
    for index, x in enumerate((-0.34, -0.02, 0.28)):
        leg(b, (x, 0.2), 0.2, 0.06, k.dark, p, index * 2.1, foot=0.07)
    for dx, tip in ((0.5, 0.5), (0.6, 0.72)):
        b.stroke(curve((dx, 0.5), (dx + 0.02, 0.66), (tip + 0.04, 0.8 + wiggle)), 0.045, k.dark, outline=False)
        b.fill(ellipse(tip + 0.05, 0.82 + wiggle, 0.05, 0.05), k.dark, outline=False)
    b.fill(ellipse(0.52, 0.36, 0.21 + 0.01 * k.head, 0.2), k.skin)
    shell = blob((-0.58, 0.2), (-0.52, 0.46), (-0.3, 0.68 + g), (0.0, 0.74 + g), (0.28, 0.64 + g), (0.42, 0.42),
                 (0.44, 0.18), (0.2, 0.14), (-0.4, 0.14))  # fmt: skip
    torso(b, k, shell, (-0.6, 0.1, 0.46, 0.78))
    b.stroke(curve((0.3, 0.62), (0.24, 0.4), (0.26, 0.16)), 0.035, k.line, outline=False)
    eye(b, k, p, 0.57, 0.42, 0.09)
    mouth(b, 0.6, 0.27, 0.05)
    hat(b, k, -0.06, 0.72, 0.23)


def elephant(b: Brush, k: Look, p: Pose) -> None:
    g, sway = 0.02 * k.girth, 0.06 * sin(p.phase)
    b.stroke(curve((-0.5, 0.56), (-0.62, 0.46), (-0.62 + sway, 0.3)), 0.05, k.main)
    for x, turn in ((-0.26, pi), (0.2, 0.0)):
        leg(b, (x, 0.3), 0.24, 0.18, k.far, p, turn)
    for x, turn in ((-0.38, 0.0), (0.08, pi)):
        leg(b, (x, 0.3), 0.24, 0.18, k.main, p, turn)
    body = blob((-0.54, 0.5), (-0.4, 0.76 + g), (-0.1, 0.82 + g), (0.2, 0.78), (0.3, 0.5), (0.1, 0.24), (-0.4, 0.24))
    torso(b, k, body, (-0.56, 0.2, 0.14, 0.84))
    lift = 0.1 * sin(0.7 * p.phase + 0.4)
    b.fill(ellipse(0.38, 0.74, 0.25 + 0.01 * k.head, 0.24), k.main)
    b.stroke(curve((0.54, 0.66), (0.66, 0.5), (0.68, 0.32 + lift / 2), (0.8, 0.3 + lift)), 0.12, k.main)
    b.stroke(curve((0.5, 0.54), (0.54, 0.44), (0.62, 0.42)), 0.05, CREAM)
    flap = 0.03 * sin(2 * p.phase) * p.stride
    ear = 0.03 * k.ears
    b.fill(ellipse(0.16 - flap, 0.68, 0.2 + ear, 0.25 + ear, -0.2), k.limb)
    b.fill(ellipse(0.16 - flap, 0.68, 0.12, 0.16, -0.2), k.inner, outline=False)
    eye(b, k, p, 0.47, 0.78, 0.085)
    horns(b, k, 0.36, 0.95, 0.13)
    hat(b, k, 0.37, 0.95, 0.21)


def giraffe(b: Brush, k: Look, p: Pose) -> None:
    g, sway, h = 0.02 * k.girth, 0.02 * sin(p.phase) * p.stride, 0.03 * k.legs
    b.stroke(curve((-0.36, 0.56), (-0.46, 0.46), (-0.46, 0.36)), 0.045, k.main)
    for x, turn in ((-0.2, pi), (0.14, 0.0)):
        leg(b, (x, 0.42), 0.38, 0.09, k.far, p, turn)
    for x, turn in ((-0.28, 0.0), (0.06, pi)):
        leg(b, (x, 0.42), 0.38, 0.09, k.main, p, turn)
    body = blob((-0.38, 0.5), (-0.28, 0.64 + g), (-0.04, 0.66), (0.08, 0.86), (0.14 + sway, 1.1 + h),
                (0.3 + sway, 1.1 + h), (0.27, 0.8), (0.24, 0.5), (0.1, 0.36 - g), (-0.26, 0.36 - g))  # fmt: skip
    torso(b, k, body, (-0.4, 0.32, 0.3, 1.12))
    x, y = 0.3 + sway, 1.16 + h
    for dx in (-0.1, 0.0):
        b.stroke(curve((x + dx, y + 0.08), (x + dx - 0.02, y + 0.24)), 0.045, k.limb)
        b.fill(ellipse(x + dx - 0.02, y + 0.26, 0.05, 0.05), k.limb, outline=False)
    b.fill(ellipse(x - 0.2, y + 0.02, 0.1, 0.055, -0.4), k.limb)
    b.fill(blob((x - 0.17, y), (x - 0.1, y + 0.14), (x + 0.08, y + 0.13), (x + 0.3, y - 0.02), (x + 0.3, y - 0.14),
                (x + 0.1, y - 0.16), (x - 0.1, y - 0.14)), k.main)  # fmt: skip
    b.fill(ellipse(x + 0.26, y - 0.08, 0.09, 0.075), k.pale, outline=False)
    eye(b, k, p, x + 0.03, y + 0.04, 0.085)
    mouth(b, x + 0.24, y - 0.1, 0.05)
    hat(b, k, x - 0.04, y + 0.11, 0.19, 0.1)


# Drawn height of a species beside the others, so that they look about equally large.
BODIES: dict[str, tuple[Callable[[Brush, Look, Pose], None], float]] = {
    "bird": (bird, 0.92),
    "cat": (cat, 0.9),
    "rabbit": (rabbit, 0.95),
    "bear": (bear, 1.0),
    "snail": (snail, 0.86),
    "fish": (fish, 0.86),
    "octopus": (octopus, 0.96),
    "beetle": (beetle, 0.88),
    "elephant": (elephant, 0.88),
    "giraffe": (giraffe, 0.92),
}
