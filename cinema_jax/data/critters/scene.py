"""Scenes: who, where and what happens; rendered at any size and number of frames."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from cinema_jax.data.critters import motion
from cinema_jax.data.critters.background import PLACES, Background, draw_thing
from cinema_jax.data.critters.cutout import Cutout, draw_cutout
from cinema_jax.data.critters.drawing import Light, Sprite, draw, paste, through_lens
from cinema_jax.data.critters.grammar import Story
from cinema_jax.data.critters.identity import Identity, Number
from cinema_jax.data.critters.motion import State, Track
from cinema_jax.data.critters.parts import Pose

Subject = Identity | Cutout

ACTIONS: dict[int, tuple[str, ...]] = {
    1: ("walk", "run", "jump", "bounce", "spin", "dance", "hide"),
    2: ("chase", "jump over", "hide behind", "meet", "walk around", "dance together", "walk together"),
    3: ("chase and watch", "jump and watch", "three meet", "three dance", "three walk"),
}


@dataclass(frozen=True)
class Actor:
    """A subject in a scene: `height` of its body in frame heights, and its motion."""

    subject: Subject
    height: float
    track: Track


@dataclass(frozen=True)
class Tracks:
    """Where the subjects of a scene are, in the order of its actors; for evaluation.

    Attributes:
        boxes: left, top, right, bottom in pixels of the whole subject, also where it is hidden or outside the frame.
        centers: x, y in pixels of the middle of the box.
        visible: share of the subject that the frame shows, in [0, 1].
    """

    boxes: Float32[np.ndarray, "frames subjects 4"]
    centers: Float32[np.ndarray, "frames subjects 2"]
    visible: Float32[np.ndarray, "frames subjects"]


def draw_subject(subject: Subject, pose: Pose, feet: tuple[Number, Number], height: Number, light: Light) -> Sprite:
    """A critter or a cut-out picture in a pose; see `drawing.draw`."""
    paint = draw if isinstance(subject, Identity) else draw_cutout
    return paint(subject, pose, feet, height, light)


@dataclass(frozen=True)
class Scene:
    """What a video shows."""

    actors: tuple[Actor, ...]  # in the order of their roles in the caption
    action: str  # one of ACTIONS
    background: Background
    side: str  # "left" or "right": where it goes
    thing: State | None = None  # what someone hides behind

    def story(self) -> Story:
        subjects = [actor.subject for actor in self.actors]
        return Story(
            action=self.action,
            place=self.background.place,
            descriptions=tuple(subject.describe() for subject in subjects),
            colors=tuple(subject.color for subject in subjects),
            nouns=tuple(subject.noun for subject in subjects),
            side=self.side,
        )

    def render(self, frames: int, height: int, width: int) -> UInt8[np.ndarray, "frames height width 3"]:
        """The video; the first frame is t = 0 and the last t = 1."""
        background = self.background.render(height, width)
        return np.stack([self._frame(t, background) for t in _times(frames)])

    def frame(self, t: Number, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
        """The one frame of time `t` in [0, 1]."""
        return self._frame(t, self.background.render(height, width))

    def _frame(self, t: Number, background: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
        frame = background.copy()
        states = [actor.track(t) for actor in self.actors]
        for state, actor in zip(states, self.actors, strict=True):
            _shadow(frame, state, actor.height)
        for _, sprite in self._sprites(states, *frame.shape[:2]):
            paste(frame, sprite)
        return through_lens(frame)

    def tracks(self, frames: int, height: int, width: int) -> Tracks:
        """Boxes, centres and visibility of every subject in every frame of `render`."""
        count = len(self.actors)
        boxes = np.zeros((frames, count, 4), np.float32)
        visible = np.zeros((frames, count), np.float32)
        for index, t in enumerate(_times(frames)):
            for number, sprite, seen in self._seen(t, height, width):
                boxes[index, number] = sprite.box()
                visible[index, number] = seen.sum() / max(1, (sprite.rgba[..., 3] > 127).sum())
        centers = (boxes[..., :2] + boxes[..., 2:]) / 2
        return Tracks(boxes, centers, visible)

    def boxes(self, frames: int, aspect: Number) -> Float32[np.ndarray, "frames subjects 4"]:
        """About where every subject of `render` is, from its track alone: left, top, right, bottom in shares of a frame
        that is `aspect` times as wide as high."""
        found = np.zeros((frames, len(self.actors), 4), np.float32)
        for index, t in enumerate(_times(frames)):
            for number, actor in enumerate(self.actors):
                state, side = actor.track(t), 0.55 * actor.height / aspect
                feet = state.y - state.lift
                found[index, number] = (state.x - side, feet - 1.15 * actor.height, state.x + side, feet)
        return found

    def masks(self, t: Number, height: int, width: int) -> Bool[np.ndarray, "subjects height width"]:
        """The pixels of `frame(t)` that show each subject, in the order of the actors."""
        found = {number: seen for number, _, seen in self._seen(t, height, width)}
        return np.stack([found[number] for number in range(len(self.actors))])

    def _seen(
        self, t: Number, height: int, width: int
    ) -> Iterator[tuple[int, Sprite, Bool[np.ndarray, "height width"]]]:
        """Each actor's number and sprite, and the pixels that show it and nobody in front of it."""
        covered: Bool[np.ndarray, "height width"] = np.zeros((height, width), bool)
        # From front to back: what is covered already is not seen.
        for number, sprite in reversed(self._sprites([actor.track(t) for actor in self.actors], height, width)):
            alpha = np.repeat(sprite.rgba[..., 3:], 4, axis=-1)
            frame = np.zeros((height, width, 3), np.uint8)
            paste(frame, Sprite(alpha, sprite.left, sprite.top))
            mask = frame[..., 0] > 127
            if number is not None:
                yield number, sprite, mask & ~covered
            covered |= mask

    def _sprites(self, states: list[State], height: int, width: int) -> list[tuple[int | None, Sprite]]:
        """The sprites of a frame from back to front, with the number of their actor."""
        light = PLACES[self.background.place].light
        layers = []
        for number, (state, actor) in enumerate(zip(states, self.actors, strict=True)):
            feet = (state.x * width, (state.y - state.lift) * height)
            sprite = draw_subject(actor.subject, state.pose, feet, actor.height * height, light)
            layers.append((state.y, number, sprite))
        if self.thing is not None:
            feet = (self.thing.x * width, self.thing.y * height)
            sprite = draw_thing(PLACES[self.background.place].thing, feet, 0.3 * height, light)
            layers.append((self.thing.y, None, sprite))
        return [(number, sprite) for _, number, sprite in sorted(layers, key=lambda layer: layer[0])]


def _times(frames: int) -> np.ndarray:
    return np.linspace(0, 1, frames) if frames > 1 else np.array([0.5])


@lru_cache(maxsize=1)
def _soft_disc() -> np.ndarray:
    y, x = np.mgrid[-1:1:33j, -1:1:33j]
    return np.clip(1.15 - np.hypot(x, y), 0, 1).astype(np.float32)


def _shadow(frame: np.ndarray, state: State, height: Number) -> None:
    """A soft shadow on the ground, smaller and paler under who is high in the air."""
    rows, columns = frame.shape[:2]
    size = height * rows * (0.5 - min(0.2, 0.5 * state.lift))
    x, y = state.x * columns, state.y * rows
    x0, x1 = max(0, int(x - size - 1)), min(columns, int(x + size + 2))
    y0, y1 = max(0, int(y - 0.3 * size - 1)), min(rows, int(y + 0.3 * size + 2))
    if x0 >= x1 or y0 >= y1:
        return
    matrix = np.array([[size / 16, 0, x - x0 - size], [0, 0.3 * size / 16, y - y0 - 0.3 * size]])
    alpha = cv2.warpAffine(_soft_disc(), matrix, (x1 - x0, y1 - y0)) * (0.34 - min(0.2, 0.5 * state.lift))
    part = frame[y0:y1, x0:x1]
    part[...] = (part * (1 - alpha[..., None])).astype(np.uint8)


def compose(subjects: list[Subject], action: str, place: str, rng: np.random.Generator) -> Scene:
    """A scene of the subjects, in the order of their roles.

    Raises:
        KeyError: `action` is none of ACTIONS.
    """
    plot = _Plot(subjects, place, rng)
    tracks, heights = _PLOTS[action](plot)
    actors = tuple(Actor(*parts) for parts in zip(subjects, heights, tracks, strict=True))
    return Scene(actors, action, Background(place, int(rng.integers(2**31))), plot.side, plot.thing)


class _Plot:
    """The random choices of a scene. Positions are told for motion to the right and mirrored by `x`."""

    def __init__(self, subjects: list[Subject], place: str, rng: np.random.Generator):
        self.rng, self.place, self.count = rng, place, len(subjects)
        self.forward = 1.0 if rng.random() < 0.5 else -1.0
        self.side = "right" if self.forward > 0 else "left"
        self.thing: State | None = None

    def x(self, x: Number) -> float:
        """Where `x` lies, with a little chance, in the direction of the scene."""
        x = x + self.rng.uniform(-0.025, 0.025)
        return x if self.forward > 0 else 1 - x

    def y(self, y: Number) -> float:
        return y + self.rng.uniform(-0.015, 0.015)

    def mood(self) -> float:
        return float(self.rng.random())

    def heights(self, low: Number, high: Number) -> list[float]:
        return [float(height) for height in self.rng.uniform(low, high, size=self.count)]


Plan = tuple[list[Track], list[float]]


def _walk(p: _Plot) -> Plan:
    return [motion.travel(p.x(0.24), p.x(0.76), p.y(0.88), 2, 0.55, 0.03, p.mood())], p.heights(0.46, 0.54)


def _run(p: _Plot) -> Plan:
    return [motion.travel(p.x(0.2), p.x(0.8), p.y(0.88), 3, 1.0, 0.14, p.mood())], p.heights(0.44, 0.52)


def _jump(p: _Plot) -> Plan:
    return [motion.hops(p.x(0.5), p.y(0.92), p.forward, 0.26, 1, p.mood())], p.heights(0.42, 0.5)


def _bounce(p: _Plot) -> Plan:
    return [motion.hops(p.x(0.5), p.y(0.9), p.forward, 0.11, 3, p.mood())], p.heights(0.45, 0.53)


def _spin(p: _Plot) -> Plan:
    return [motion.spin(p.x(0.5), p.y(0.88), p.forward)], p.heights(0.46, 0.54)


def _dance(p: _Plot) -> Plan:
    return [motion.dance(p.x(0.5), p.y(0.88), p.forward, p.mood())], p.heights(0.46, 0.54)


def _hide(p: _Plot) -> Plan:
    x = p.x(0.66)
    p.thing = State(x, 0.93, 0.0, Pose())
    return [motion.walk_to(p.x(0.24), x - 0.03 * p.forward, p.y(0.85), 0.75, -p.forward, 2, p.mood())], p.heights(
        0.44, 0.5
    )


def _chase(p: _Plot) -> Plan:
    ahead = motion.travel(p.x(0.5), p.x(0.88), p.y(0.86), 3, 1.0, 0.12, p.mood())
    behind = motion.travel(p.x(0.1), p.x(0.47), p.y(0.9), 3, 1.0, 0.16, p.mood())
    return [behind, ahead], p.heights(0.36, 0.42)


def _jump_over(p: _Plot) -> Plan:
    leap = motion.leap(p.x(0.16), p.x(0.84), p.y(0.86), 0.42, p.mood())
    return [leap, motion.stand(p.x(0.5), p.y(0.93), -p.forward, p.mood())], [*p.heights(0.35, 0.39)]


def _hide_behind(p: _Plot) -> Plan:
    x, facing = p.x(0.64), -p.forward
    hider = motion.walk_to(p.x(0.2), x - 0.12 * p.forward, p.y(0.8), 0.75, -p.forward, 2, p.mood())
    return [hider, motion.stand(x, p.y(0.92), facing, p.mood())], [p.rng.uniform(0.36, 0.4), p.rng.uniform(0.46, 0.5)]


def _meet(p: _Plot) -> Plan:
    first = motion.walk_to(p.x(0.1), p.x(0.3), p.y(0.88), 0.7, p.forward, 2, p.mood())
    second = motion.walk_to(p.x(0.9), p.x(0.7), p.y(0.88), 0.7, -p.forward, 2, p.mood())
    return [first, second], p.heights(0.38, 0.44)


def _walk_around(p: _Plot) -> Plan:
    x, y = p.x(0.5), p.y(0.84)
    walker = motion.orbit(x, y, 0.3, 0.09, p.rng.uniform(0, 6.28), p.forward * 0.9, p.mood())
    return [walker, motion.stand(x, y, p.forward, p.mood())], p.heights(0.35, 0.4)


def _dance_together(p: _Plot) -> Plan:
    mood = p.mood()
    first = motion.dance(p.x(0.28), p.y(0.88), p.forward, mood)
    return [first, motion.dance(p.x(0.72), p.y(0.88), -p.forward, mood)], p.heights(0.38, 0.44)


def _walk_together(p: _Plot) -> Plan:
    first = motion.travel(p.x(0.55), p.x(0.82), p.y(0.9), 2, 0.55, 0.03, p.mood())
    second = motion.travel(p.x(0.14), p.x(0.41), p.y(0.86), 2, 0.55, 0.03, p.mood())
    return [first, second], p.heights(0.38, 0.44)


def _chase_and_watch(p: _Plot) -> Plan:
    ahead = motion.travel(p.x(0.5), p.x(0.88), p.y(0.91), 3, 1.0, 0.12, p.mood())
    behind = motion.travel(p.x(0.1), p.x(0.47), p.y(0.94), 3, 1.0, 0.16, p.mood())
    return [behind, ahead, motion.stand(p.x(0.5), p.y(0.63), p.forward, p.mood())], p.heights(0.32, 0.37)


def _jump_and_watch(p: _Plot) -> Plan:
    leap = motion.leap(p.x(0.14), p.x(0.66), p.y(0.86), 0.4, p.mood())
    low = motion.stand(p.x(0.4), p.y(0.94), -p.forward, p.mood())
    return [leap, low, motion.stand(p.x(0.86), p.y(0.8), -p.forward, p.mood())], p.heights(0.31, 0.35)


def _three_meet(p: _Plot) -> Plan:
    first = motion.walk_to(p.x(0.06), p.x(0.2), p.y(0.9), 0.7, p.forward, 2, p.mood())
    second = motion.walk_to(p.x(0.94), p.x(0.8), p.y(0.9), 0.7, -p.forward, 2, p.mood())
    return [first, second, motion.hops(p.x(0.5), p.y(0.8), p.forward, 0.07, 2, p.mood())], p.heights(0.32, 0.37)


def _three_dance(p: _Plot) -> Plan:
    mood = p.mood()
    spots = ((0.18, 0.9), (0.5, 0.82), (0.82, 0.91))
    return [motion.dance(p.x(x), p.y(y), p.forward, mood) for x, y in spots], p.heights(0.32, 0.37)


def _three_walk(p: _Plot) -> Plan:
    spots = ((0.66, 0.93), (0.4, 0.8), (0.14, 0.91))
    tracks = [motion.travel(p.x(x), p.x(x + 0.2), p.y(y), 2, 0.55, 0.03, p.mood()) for x, y in spots]
    return tracks, p.heights(0.32, 0.37)


_PLOTS = {
    "walk": _walk,
    "run": _run,
    "jump": _jump,
    "bounce": _bounce,
    "spin": _spin,
    "dance": _dance,
    "hide": _hide,
    "chase": _chase,
    "jump over": _jump_over,
    "hide behind": _hide_behind,
    "meet": _meet,
    "walk around": _walk_around,
    "dance together": _dance_together,
    "walk together": _walk_together,
    "chase and watch": _chase_and_watch,
    "jump and watch": _jump_and_watch,
    "three meet": _three_meet,
    "three dance": _three_dance,
    "three walk": _three_walk,
}
