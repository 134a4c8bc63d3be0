"""The one schema of a training example: a video, and the conditions that go beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8


@dataclass(frozen=True)
class Reference:
    """One picture of one subject.

    Two references with the same `subject` are two views of one entity.
    """

    # The picture, sRGB.
    image: UInt8[np.ndarray, "height width 3"]
    # Which pixels are the subject: 255 inside, 0 outside, between at soft edges. None: the whole picture.
    mask: UInt8[np.ndarray, "height width"] | None
    # Name of the entity, unique within an example; never shown to a model.
    subject: str
    # What the entity is ("dog"), where that is known.
    noun: str | None = None
    # Whether the picture shows something outside its mask; not so where the mask is the picture's own transparency.
    background: bool = True
    # Whether it is cut out of the very clip that it goes with: a model could learn to paste it.
    same_clip: bool = False


@dataclass(frozen=True)
class Conditions:
    """What goes beside a video."""

    # The detailed description, the aligner's target.
    caption: str
    # What the multimodal model reads: may be vague ("two friends meet").
    prompt: str
    # In the order in which the models see them.
    references: tuple[Reference, ...]
    # The caption without what the references show, which it calls "the first", "the second"; None if nobody wrote it.
    plot: str | None = None


@dataclass(frozen=True)
class ClipTexts:
    """What is said of one clip, and where it is written down."""

    file: str
    # From 1.
    line: int
    id: str
    caption: str
    prompt: str
    # How many of its subjects have references.
    subjects: int


@runtime_checkable
class Source(Protocol):
    """A dataset: random access to videos and to what goes beside them.

    `video(index)` is the same at every call; `conditions(index, rng)` may vary with `rng` (other views, order).
    Both raise `cinema_jax.errors.InputError` for a sample that cannot be read.
    """

    def __len__(self) -> int: ...

    def video(self, index: int) -> UInt8[np.ndarray, "frames height width 3"]:
        """The sRGB frames of example `index`."""
        ...

    def frame(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
        """One random frame of example `index`."""
        ...

    def caption(self, index: int) -> str:
        """The caption of example `index`, without the cost of its references."""
        ...

    def conditions(self, index: int, rng: np.random.Generator) -> Conditions:
        """Caption, prompt and references of example `index`."""
        ...

    def id(self, index: int) -> str:
        """A name of example `index` that stays the same when the dataset grows."""
        ...


@runtime_checkable
class VideoSource(Source, Protocol):
    """A source whose videos may be encoded and kept."""

    def content(self, index: int) -> list:
        """All that the frames of `video(index)` follow from, in values of JSON: frames change only where this does."""
        ...


@runtime_checkable
class LocatedSource(Source, Protocol):
    """A source that knows where the subjects of its videos are."""

    def boxes(self, index: int) -> Float32[np.ndarray, "frames subjects 4"]:
        """About where each subject is: left, top, right, bottom in shares of the frame."""
        ...


@runtime_checkable
class GroupedSource(Source, Protocol):
    """A source of which several examples may come from one place, and show the same subjects."""

    def group(self, index: int) -> str:
        """The place that example `index` comes from."""
        ...


@runtime_checkable
class EncodedSource(Source, Protocol):
    """A source whose videos were encoded before. Their pixels may be gone: `video` may then raise `InputError`."""

    @property
    def latents(self) -> Sequence:
        """The latents [F H W C] of every example, in bf16."""
        ...

    def check_vae(self, vae: str) -> None:
        """Raises `InputError` if another VAE made the latents; `vae` is what `training.latents.vae_key` calls one."""
        ...
