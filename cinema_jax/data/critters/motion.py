"""How subjects move: smooth functions of the time t in [0, 1], so that any number of frames shows the same motion."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, pi, sin

from cinema_jax.data.critters.identity import Number
from cinema_jax.data.critters.parts import Pose


@dataclass(frozen=True)
class State:
    """Where a subject is at one moment.

    Attributes:
        x: of the feet, in frame widths.
        y: of the ground under the feet, in frame heights; whoever has more stands in front.
        lift: of the feet above the ground, in frame heights.
    """

    x: float
    y: float
    lift: float
    pose: Pose


Track = Callable[[float], State]


def ease(t: Number, start: Number = 0.0, end: Number = 1.0) -> float:
    """0 before `start`, 1 after `end`, smooth between."""
    s = min(1.0, max(0.0, (t - start) / (end - start)))
    return s * s * (3 - 2 * s)


def bump(t: Number, start: Number, end: Number) -> float:
    """0 outside of (start, end), a parabola of height 1 inside."""
    s = (t - start) / (end - start)
    return max(0.0, 4 * s * (1 - s)) if 0 < s < 1 else 0.0


def blink(t: Number, at: Number) -> float:
    return min(1.0, max(0.0, 1.6 - abs(t - at) / 0.06))


def stand(x: Number, y: Number, facing: Number, mood: Number = 0.5) -> Track:
    """Breathes, looks around and blinks; `mood` in [0, 1] says when."""

    def at(t: Number) -> State:
        breath = sin(2 * pi * (0.75 * t + mood))
        gaze = (0.7, 0.3 * sin(2 * pi * (t + mood)))
        pose = Pose(phase=breath, facing=facing, squash=1 + 0.035 * breath, blink=blink(t, 0.2 + 0.6 * mood), gaze=gaze)
        return State(x, y, 0.0, pose)

    return at


def travel(
    start: Number, end: Number, y: Number, steps: Number, stride: Number, lean: Number = 0.0, mood: Number = 0.5
) -> Track:
    """Walks (stride 0.5) or runs (stride 1) from `start` to `end`, at an even pace."""

    def at(t: Number) -> State:
        phase = 2 * pi * (0.5 * steps * t + mood)
        facing = 1.0 if end >= start else -1.0
        pose = Pose(
            phase=phase,
            stride=stride,
            facing=facing,
            squash=1 + 0.06 * stride * cos(2 * phase),
            tilt=lean + 0.04 * sin(phase),
            blink=blink(t, 0.2 + 0.6 * mood),
            gaze=(0.7, 0.0),
        )
        return State(start + (end - start) * t, y, 0.03 * stride * abs(sin(phase)), pose)

    return at


def walk_to(
    start: Number, end: Number, y: Number, until: Number, facing: Number, steps: Number = 2.0, mood: Number = 0.5
) -> Track:
    """Walks to `end`, arrives at the time `until`, then stands and looks towards `facing`."""
    after = stand(end, y, facing, mood)
    going = travel(0.0, end - start, y, steps, 0.6, 0.05, mood)

    def at(t: Number) -> State:
        if t >= until:
            return after(t)
        way = going(t / until)
        return replace(way, x=start + (end - start) * ease(t / until))

    return at


def hops(x: Number, y: Number, facing: Number, height: Number, count: int, mood: Number = 0.5) -> Track:
    """Jumps on the spot: crouches, stretches, lands and squashes, `count` times."""

    def at(t: Number) -> State:
        s = (t * count) % 1.0 if t < 1 else 1.0
        air = bump(s, 0.2, 0.85)
        crouch = bump(s, -0.1, 0.24) + bump(s, 0.82, 1.05)
        stretch = 0.14 * sin(pi * min(1.0, max(0.0, (s - 0.2) / 0.65))) * abs(cos(pi * (s - 0.2) / 0.65))
        pose = Pose(
            phase=2 * pi * s,
            stride=0.5 * air,
            facing=facing,
            squash=1 - 0.2 * min(1.0, crouch) + stretch,
            blink=blink(t, 0.2 + 0.6 * mood),
            gaze=(0.3, 0.7 * air),
        )
        return State(x, y, height * air, pose)

    return at


def spin(x: Number, y: Number, facing: Number, turns: Number = 1.0) -> Track:
    """Turns around like a paper figure."""

    def at(t: Number) -> State:
        angle = 2 * pi * turns * ease(t)
        pose = Pose(phase=angle, stride=0.4, facing=facing * cos(angle), squash=1 + 0.05 * sin(2 * angle))
        return State(x, y, 0.03 * abs(sin(angle)), pose)

    return at


def dance(x: Number, y: Number, facing: Number, mood: Number = 0.5) -> Track:
    """Sways from side to side in time."""

    def at(t: Number) -> State:
        beat = 2 * pi * (0.75 * t + mood)
        pose = Pose(
            phase=beat,
            stride=0.7,
            facing=facing,
            tilt=0.24 * sin(beat),
            squash=1 + 0.09 * cos(2 * beat),
            gaze=(0.6 * sin(beat), 0.4),
        )
        return State(x + 0.02 * sin(beat), y, 0.025 * abs(sin(beat)), pose)

    return at


def leap(start: Number, end: Number, y: Number, height: Number, mood: Number = 0.5) -> Track:
    """Runs up, jumps in a high arc, and lands."""

    def at(t: Number) -> State:
        air = bump(t, 0.2, 0.82)
        rise = cos(pi * min(1.0, max(0.0, (t - 0.2) / 0.62)))
        facing = 1.0 if end >= start else -1.0
        crouch = bump(t, 0.02, 0.24) + bump(t, 0.79, 1.02)
        pose = Pose(
            phase=2 * pi * (t + mood),
            stride=0.9,
            facing=facing,
            squash=1 - 0.16 * min(1.0, crouch) + 0.1 * air * abs(rise),
            tilt=-0.22 * rise * (1 if air > 0 else 0),
            gaze=(0.5, -0.6 * air),
        )
        share = 0.12 * t + 0.88 * ease(t, 0.08, 0.94)
        return State(start + (end - start) * share, y, height * air, pose)

    return at


def orbit(x: Number, y: Number, rx: Number, ry: Number, begin: Number, turns: Number, mood: Number = 0.5) -> Track:
    """Walks around (x, y) on an ellipse: behind, then in front."""

    def at(t: Number) -> State:
        angle = begin + 2 * pi * turns * t
        phase = 2 * pi * (1.5 * t + mood)
        facing = 1.0 if -sin(angle) * turns >= 0 else -1.0
        pose = Pose(phase=phase, stride=0.6, facing=facing, squash=1 + 0.03 * cos(2 * phase), tilt=0.04)
        return State(x + rx * cos(angle), y + ry * sin(angle), 0.015 * abs(sin(phase)), pose)

    return at
