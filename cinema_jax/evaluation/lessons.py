"""What the judge learns from: frames of drawn scenes with who is where, and another picture of everybody in them.

Only the train split is drawn from. numpy alone: worker processes import this.
"""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from tqdm import tqdm

from cinema_jax.data.critters.background import PLACES
from cinema_jax.data.critters.source import Critters, reference
from cinema_jax.data.example import Reference
from cinema_jax.data.images import letterbox

# Pixels of a frame that one place of the judge's map covers, and scenes in one file of drawn ones.
CELL, SHARD = 4, 256
# A subject of which the frame shows fewer pixels than this is not looked for.
LEAST_PIXELS = 40
MOST_SUBJECTS = 3
# Width of the bump that marks a centre, in places.
SIGMA = 1.0

Lessons = dict[str, np.ndarray]


def picture(reference: Reference, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """A reference as the judge looks at it: cut out, as large as the square allows, on white."""
    return letterbox(reference.image, reference.mask, size, size)


def centre_bumps(masks: Bool[np.ndarray, "K height width"]) -> Float32[np.ndarray, "K h w"]:
    """A Gaussian of height 1 around the middle of what is seen of each subject; 0 for who is hardly seen."""
    count, height, width = masks.shape
    rows, columns = np.mgrid[: height // CELL, : width // CELL] + 0.5
    bumps = np.zeros((count, height // CELL, width // CELL), np.float32)
    for bump, mask in zip(bumps, masks, strict=True):
        y, x = np.nonzero(mask)
        if len(y) >= LEAST_PIXELS:
            distance = (rows - (y.mean() + 0.5) / CELL) ** 2 + (columns - (x.mean() + 0.5) / CELL) ** 2
            bump[...] = np.exp(-0.5 * distance / SIGMA**2)
    return bumps


def draw(index: int, size: int = 64, reference_size: int = 32) -> Lessons:
    """One lesson.

    `frame` [size size 3], `heat` and `cover` [K h w] (the bump of each subject's centre; the share of each place that
    shows it), `references` [K s s 3], `count` of subjects and `place`; K is padded to `MOST_SUBJECTS`.
    """
    source = Critters("train", height=size, width=size, size=index + 1)
    scene, rng = source.scene(index), np.random.default_rng([7, index])
    time = float(rng.random())
    masks = scene.masks(time, size, size)
    cells = size // CELL
    lesson = {
        "frame": scene.frame(time, size, size),
        "heat": np.zeros((MOST_SUBJECTS, cells, cells), np.float16),
        "cover": np.zeros((MOST_SUBJECTS, cells, cells), np.float16),
        "references": np.full((MOST_SUBJECTS, reference_size, reference_size, 3), 255, np.uint8),
        "count": np.int32(len(masks)),
        "place": np.int32(list(PLACES).index(scene.background.place)),
    }
    lesson["heat"][: len(masks)] = centre_bumps(masks)
    lesson["cover"][: len(masks)] = masks.reshape(len(masks), cells, CELL, cells, CELL).mean(axis=(2, 4))
    for number, actor in enumerate(scene.actors):
        lesson["references"][number] = picture(reference(actor.subject, rng), reference_size)
    return lesson


def prepare(folder: Path, count: int, workers: int) -> Lessons:
    """`count` lessons, stacked: read from files of an earlier call, and drawn by processes where there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(-(-count // SHARD))
    missing = [(folder, shard) for shard in shards if not _file(folder, shard).exists()]
    if missing:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for _ in tqdm(pool.imap(_draw_shard, missing), total=len(missing), desc="draw", unit="file"):
                pass
    read = [np.load(_file(folder, shard), allow_pickle=False) for shard in shards]
    return {name: np.concatenate([shard[name] for shard in read])[:count] for name in read[0].files}


def batches(lessons: Lessons, size: int, first: int, last: int) -> Iterator[Lessons]:
    """The batches of steps `first` to `last`: every epoch in its own order, the same wherever it begins."""
    total = len(lessons["frame"])
    per_epoch = total // size
    for step in range(first, last):
        epoch, row = divmod(step, per_epoch)
        order = np.random.default_rng([11, epoch]).permutation(total)[row * size : (row + 1) * size]
        yield {name: array[order] for name, array in lessons.items()}


def _file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:04d}.npz"


def _draw_shard(task: tuple[Path, int]) -> None:
    folder, shard = task
    lessons = [draw(index) for index in range(shard * SHARD, (shard + 1) * SHARD)]
    partial = folder / f"{shard:04d}.partial.npz"
    np.savez(partial, **{name: np.stack([lesson[name] for lesson in lessons]) for name in lessons[0]})
    partial.replace(_file(folder, shard))
