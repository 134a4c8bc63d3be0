"""The dataset: videos of critters with captions, prompts and references, all a function of the index."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, UInt8

from cinema_jax.data.critters import grammar
from cinema_jax.data.critters.background import PLACES, Background
from cinema_jax.data.critters.cutout import Cutout, cast_of
from cinema_jax.data.critters.drawing import Sprite, paste, through_lens
from cinema_jax.data.critters.identity import SPECIES, SPLITS, Number, draw_identity
from cinema_jax.data.critters.parts import Pose
from cinema_jax.data.critters.scene import ACTIONS, Scene, Subject, Tracks, compose, draw_subject
from cinema_jax.data.example import Conditions, Reference
from cinema_jax.data.images import on_white
from cinema_jax.errors import InputError

SIZES = {"train": 100_000, "validation": 1_000, "test": 1_000}
SHARES = (0.3, 0.45, 0.25)  # of scenes with one, two and three subjects


class Critters:
    """A `Source` of drawn videos.

    Identities (or pictures) of the splits never overlap. Index, split and seed determine a video, on every machine.

    Args:
        split: "train", "validation" or "test".
        frames, height, width: of a video; any number of frames shows the same motion.
        fps: of the video, for whoever stores it; the motion does not depend on it.
        size: number of examples; None takes the split's own.
        seed: another seed is another dataset.
        max_subjects: 1, 2 or 3.
        shares: how much of the scenes has one, two and three subjects.
        cutouts: pictures that play instead of drawn critters.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        frames: int = 9,
        height: int = 64,
        width: int = 64,
        fps: Number = 8,
        size: int | None = None,
        seed: int = 0,
        max_subjects: int = 3,
        shares: Sequence[float] = SHARES,
        cutouts: Sequence[Cutout] | None = None,
    ):
        if split not in SPLITS:
            raise InputError(f"split is {split!r}; accepted: {', '.join(SPLITS)}")
        if max_subjects not in ACTIONS:
            raise InputError(f"max_subjects is {max_subjects}; accepted: 1, 2 or 3")
        for name, value, least in (("frames", frames, 1), ("height", height, 16), ("width", width, 16)):
            if value < least:
                raise InputError(f"{name} is {value}; accepted: {least} or more")
        if len(shares) != len(SHARES) or min(shares) < 0 or shares[0] <= 0:
            raise InputError(
                f"shares is {tuple(shares)}; accepted: three numbers of 0 or more, the first above 0: how much of the "
                "scenes has one, two and three subjects"
            )
        self.split, self.seed, self.max_subjects, self.shares = split, seed, max_subjects, tuple(shares)
        self.frames, self.height, self.width, self.fps = frames, height, width, fps
        self.size = SIZES[split] if size is None else size
        self.cutouts = cutouts

    def __len__(self) -> int:
        return self.size

    def id(self, index: int) -> str:
        """For instance "critters-train-0-00000017"."""
        kind = "critters" if self.cutouts is None else "cutouts"
        if self.shares != SHARES:
            kind = "-".join([kind, *(f"{share:g}" for share in self.shares)])
        return f"{kind}-{self.split}-{self.seed}-{index:08d}"

    def content(self, index: int) -> list:
        """All that the frames of `video(index)` follow from: they change only where this does."""
        cast = []
        if self.cutouts is not None:
            rng = self._rng(index, 0)
            cast = [[cutout.key, cutout.digest] for cutout in self._cast(self._count(rng), rng)]
        return [self.id(index), cast, self.max_subjects, self.frames, self.height, self.width]

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        if not 0 <= index < self.size:
            raise IndexError(f"index is {index}; accepted: 0 to {self.size - 1}")
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, purpose])

    def scene(self, index: int) -> Scene:
        """Who does what where in example `index`; its actors are in the order in which the caption names them."""
        rng = self._rng(index, 0)
        count = self._count(rng)
        subjects = self._cast(count, rng)
        action = ACTIONS[count][rng.integers(len(ACTIONS[count]))]
        places = list(PLACES)
        return compose(subjects, action, places[rng.integers(len(places))], rng)

    def _count(self, rng: np.random.Generator) -> int:
        """How many subjects a scene has."""
        subjects = self.max_subjects if self.cutouts is None else len({cutout.subject for cutout in self.cutouts})
        shares = np.array(self.shares[: min(self.max_subjects, subjects)])
        return 1 + int(rng.choice(len(shares), p=shares / shares.sum()))

    def _cast(self, count: int, rng: np.random.Generator) -> list[Subject]:
        """Subjects of different species and colours, so that nouns or colours alone name each."""
        if self.cutouts is not None:
            return cast_of(self.cutouts, count, int(rng.integers(2**63)))
        cast: list[Subject] = []
        for number in rng.choice(len(SPECIES), count, replace=False):
            while True:
                identity = draw_identity(int(rng.integers(2**31)), self.split, SPECIES[number])
                colors = {identity.color, identity.accent}
                if all(identity.color != other.color and colors != {other.color, other.accent} for other in cast):
                    break
            cast.append(identity)
        return cast

    def video(self, index: int) -> UInt8[np.ndarray, "frames height width 3"]:
        """The sRGB frames of example `index`."""
        return self.scene(index).render(self.frames, self.height, self.width)

    def frame(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
        """The scene of example `index` at a random time."""
        return self.scene(index).frame(float(rng.random()), self.height, self.width)

    def tracks(self, index: int) -> Tracks:
        """Where the subjects of `video(index)` are, in the order of `scene(index).actors`."""
        return self.scene(index).tracks(self.frames, self.height, self.width)

    def boxes(self, index: int) -> Float32[np.ndarray, "frames subjects 4"]:
        """About where the subjects of `video(index)` are, in shares of the frame, without drawing anything."""
        return self.scene(index).boxes(self.frames, self.width / self.height)

    def caption(self, index: int) -> str:
        """All that example `index` shows, in words."""
        return grammar.caption(self.scene(index).story())

    def conditions(self, index: int, rng: np.random.Generator) -> Conditions:
        """A prompt and references that vary with `rng`; caption and plot speak of these in their order."""
        scene = self.scene(index)
        story = scene.story()
        prompt, order = _asked(story, rng)
        references = tuple(reference(scene.actors[number].subject, rng) for number in order)
        return Conditions(grammar.caption(story, order), prompt, references, grammar.plot(story, order))

    def portrait_task(
        self, index: int, rng: np.random.Generator
    ) -> tuple[tuple[UInt8[np.ndarray, "height width 3"], ...], str, str]:
        """(one image, question, answer): a single subject of example `index` and its naming."""
        actors = self.scene(index).actors
        subject = actors[rng.integers(len(actors))].subject
        images = (_shown(reference(subject, rng), rng),)
        return images, grammar.QUESTIONS[rng.integers(len(grammar.QUESTIONS))], grammar.naming([subject.describe()])

    def describe_task(
        self, index: int, rng: np.random.Generator
    ) -> tuple[tuple[UInt8[np.ndarray, "height width 3"], ...], str, str]:
        """(images, question, answer) for teaching a multimodal model to see, and to find out who is who.

        A quarter of the time the question is what the images show, in their order; a quarter of the time it is a
        prompt, perhaps vague, and the answer the full caption. Else it says what happens with numbers of images behind
        some nouns, which are to be learned as well (`Preprocessor.answering`), and the answer who does what: a model
        that foretells the number knows of every noun that it reads which image it speaks of, and that is what the
        AlignerNet has to be told.
        """
        scene, task = self.scene(index), rng.integers(4)
        story = scene.story()
        prompt, order = _asked(story, rng)
        if task == 0:
            question = grammar.QUESTIONS[rng.integers(len(grammar.QUESTIONS))]
            answer = grammar.naming([story.descriptions[role] for role in order])
        elif task == 1:
            question, answer = prompt, grammar.caption(story, order)
        else:
            order = [int(role) for role in rng.permutation(len(order))]
            told = [role for role in order if rng.random() < 0.5]
            question = grammar.numbered(story, order, grammar.STYLES[rng.integers(3)], told)
            # Who acts is then known when the prompt has been read, where the AlignerNet listens.
            answer = grammar.who_does_what(story, order)
        images = tuple(_shown(reference(scene.actors[role].subject, rng), rng) for role in order)
        return images, question, answer


def _asked(story: grammar.Story, rng: np.random.Generator) -> tuple[str, list[int]]:
    """A prompt, and the numbers of the roles in the order of their pictures: any order, unless only the order tells
    who is who."""
    prompt, count = grammar.prompt(story, rng), len(story.descriptions)
    order = rng.permutation(count) if grammar.tells_who(prompt, story) else range(count)
    return prompt, [int(number) for number in order]


def reference(subject: Subject, rng: np.random.Generator, size: int | None = None) -> Reference:
    """A separate picture of the subject: its own pose, size, tilt, light and background.

    Args:
        size: height and width in pixels; None draws each from 64 to 128.
    """
    height, width = (size, size) if size else (int(side) for side in rng.integers(64, 129, size=2))
    facing = 1.0 if rng.random() < 0.5 else -1.0
    pose = Pose(
        phase=rng.uniform(0, 2 * np.pi),
        stride=rng.uniform(0, 1),
        facing=facing * rng.uniform(0.9, 1.0),
        squash=rng.uniform(0.94, 1.06),
        tilt=np.deg2rad(rng.uniform(-20, 20)),
        gaze=(rng.uniform(-0.6, 0.8), rng.uniform(-0.5, 0.5)),
    )
    brightness = rng.uniform(0.88, 1.1)
    light = tuple(float(brightness * tint) for tint in rng.uniform(0.95, 1.05, size=3))
    image = _reference_background(rng, height, width)
    body = rng.uniform(0.5, 0.68) * min(height, width)
    # Drawn once to learn its box, then moved so that all of it is inside the picture.
    sprite = draw_subject(subject, pose, (width / 2, height * 0.9), body, light)
    left, top, right, bottom = sprite.box()
    room_x, room_y = width - (right - left), height - (bottom - top)
    x = round(-left + rng.uniform(0.15, 0.85) * room_x)
    y = round(-top + rng.uniform(0.3, 0.9) * room_y)
    sprite = replace(sprite, left=sprite.left + x, top=sprite.top + y)
    paste(image, sprite)
    mask = np.zeros((height, width, 3), np.uint8)
    paste(mask, Sprite(np.repeat(sprite.rgba[..., 3:], 4, axis=-1), sprite.left, sprite.top))
    return Reference(through_lens(image), np.ascontiguousarray(mask[..., 0]), subject.key, subject.noun)


def _shown(picture: Reference, rng: np.random.Generator) -> np.ndarray:
    """A reference with its background, or cut out on white, as users give both."""
    return on_white(picture.image, picture.mask) if rng.random() < 0.5 else picture.image


def _reference_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A place, or a soft gradient of two pale colours."""
    if rng.random() < 0.5:
        places = list(PLACES)
        return Background(places[rng.integers(len(places))], int(rng.integers(2**31))).render(height, width)
    first, second = rng.uniform(150, 250, size=(2, 3))
    ramp = np.linspace(0, 1, height)[:, None, None]
    row = np.broadcast_to(first * (1 - ramp) + second * ramp, (height, width, 3))
    return row.astype(np.uint8)
