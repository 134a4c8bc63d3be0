"""The packaged judge looking at videos and reference pictures."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from cinema_jax.cinema import to_float
from cinema_jax.data.example import Reference
from cinema_jax.evaluation.judge.weights import read_judge
from cinema_jax.evaluation.lessons import picture
from cinema_jax.experiment import parts
from cinema_jax.experiment.checkpoint import digest
from cinema_jax.weights.rules import flatten

# Pictures that go through the judge at once: one shape, one compilation.
BATCH = 32


class Look(NamedTuple):
    """What the judge sees in the frames of one video; see `models.judge.model.Seen`."""

    embeddings: Float[np.ndarray, "frames h w E"]
    heat: Float[np.ndarray, "frames h w"]  # chance of a subject's centre, in [0, 1]
    background: Float[np.ndarray, "places"]  # mean logits


class Eyes:
    """A judge, compiled.

    Args:
        folder: its config.json and weights; None is the packaged one.

    Raises:
        InputError: the folder holds no judge.
    """

    def __init__(self, folder: Path | None = None):
        self.config, judge = read_judge(folder or parts.PACKAGED / "judge")
        self.scale = float(judge.scale())
        self.digest = digest({path: np.asarray(x) for path, x in flatten(judge).items()})
        graph, state = nnx.split(judge)
        self._frames = functools.partial(_frames, graph, state)
        self._references = functools.partial(_references, graph, state)

    def look(self, video: UInt8[np.ndarray, "frames height width 3"]) -> Look:
        """At every frame of a video of any size, brought to the height that the judge knows."""
        height = self.config.frame_height
        if video.shape[1] != height:
            width = max(8, 8 * round(video.shape[2] * height / video.shape[1] / 8))
            video = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in video])
        seen = [self._frames(block) for block in _blocks(video)]
        embeddings, heat, background = (np.concatenate(x)[: len(video)] for x in zip(*seen, strict=True))
        return Look(embeddings, 1 / (1 + np.exp(-heat)), background.mean(axis=0))

    def names(self, references: Sequence[Reference]) -> Float[np.ndarray, "K E"]:
        """The unit embedding of each reference."""
        pictures = np.stack([picture(reference, self.config.reference_size) for reference in references])
        return np.concatenate([self._references(block) for block in _blocks(pictures)])[: len(pictures)]


def _blocks(pictures: np.ndarray) -> list[np.ndarray]:
    """Cut in blocks of `BATCH`, the last one filled up with black ones."""
    missing = -len(pictures) % BATCH
    padded = np.concatenate([pictures, np.zeros((missing, *pictures.shape[1:]), np.uint8)])
    return [padded[start : start + BATCH] for start in range(0, len(padded), BATCH)]


@functools.partial(jax.jit, static_argnums=0)
def _frames(graph: nnx.GraphDef, state: nnx.State, pictures: UInt8[Array, "B height width 3"]):
    return tuple(nnx.merge(graph, state).frames(to_float(pictures)))


@functools.partial(jax.jit, static_argnums=0)
def _references(graph: nnx.GraphDef, state: nnx.State, pictures: UInt8[Array, "B height width 3"]):
    return nnx.merge(graph, state).references(to_float(pictures))
