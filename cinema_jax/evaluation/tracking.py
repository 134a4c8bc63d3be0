"""Where the subjects of a video are, by their references."""

import dataclasses

import numpy as np
from jaxtyping import Float

from cinema_jax.evaluation.judging import Look

# Below this a frame is taken not to show the subject; the place is then interpolated between frames that do.
CERTAIN = 0.1


@dataclasses.dataclass(frozen=True)
class Tracked:
    """The subjects of a video, in the order of the names they were looked for by.

    Attributes:
        positions: x and y of the centre, in frame heights.
        certainty: that it is there and is this subject, in [0, 1].
        embeddings: of what is there.
    """

    positions: Float[np.ndarray, "frames K 2"]
    certainty: Float[np.ndarray, "frames K"]
    embeddings: Float[np.ndarray, "frames K E"]


def chances(look: Look, names: Float[np.ndarray, "N E"], scale: float) -> Float[np.ndarray, "frames h w N"]:
    """The chance that a subject's centre is at a place and is, of these names, this one."""
    logits = scale * look.embeddings @ names.T
    logits -= logits.max(axis=-1, keepdims=True)
    shares = np.exp(logits)
    return look.heat[..., None] * shares / shares.sum(axis=-1, keepdims=True)


def track(look: Look, names: Float[np.ndarray, "N E"], count: int, scale: float) -> Tracked:
    """The first `count` of the names, each at the place that is most likely it and none of the others."""
    maps = chances(look, names, scale)[..., :count]
    frames, height, width, _ = maps.shape
    rows, columns = np.divmod(maps.reshape(frames, height * width, count).argmax(axis=1), width)
    at = np.arange(frames)[:, None]
    certainty = maps[at, rows, columns, np.arange(count)]
    positions = np.stack([_refined(maps, rows, columns, axis) for axis in (2, 1)], axis=-1) / height
    for number in range(count):
        positions[:, number] = _bridged(positions[:, number], certainty[:, number] >= CERTAIN)
    return Tracked(positions, certainty, look.embeddings[at, rows, columns])


def _refined(
    maps: Float[np.ndarray, "frames h w K"], rows: np.ndarray, columns: np.ndarray, axis: int
) -> Float[np.ndarray, "frames K"]:
    """The mean of the places around the best one along an axis, weighted by their chance; in places, from the edge."""
    frames, *size, count = maps.shape
    at, who = np.arange(frames)[:, None], np.arange(count)
    best = columns if axis == 2 else rows
    total, moment = np.zeros(best.shape), np.zeros(best.shape)
    for step in (-1, 0, 1):
        place = np.clip(best + step, 0, size[axis - 1] - 1)
        weight = maps[at, rows, place, who] if axis == 2 else maps[at, place, columns, who]
        total, moment = total + weight, moment + weight * (place + 0.5)
    return moment / np.maximum(total, 1e-12)


def _bridged(path: Float[np.ndarray, "frames 2"], sure: np.ndarray) -> Float[np.ndarray, "frames 2"]:
    """A path where frames that are not sure lie between those that are; as it is where none is."""
    if not sure.any():
        return path
    times = np.arange(len(path))
    return np.stack([np.interp(times, times[sure], path[sure, axis]) for axis in range(2)], axis=-1)
