"""What the judge learns from: frames of drawn scenes with who is where, and another picture of everybody in them.

Only the train split is drawn from. numpy alone: worker processes import this.
"""

import dataclasses
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from tqdm import tqdm

from cinema_jax.data.critters.background import PLACES
from cinema_jax.data.critters.identity import COLORS, HATS, HORNED, Identity, bodies
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


def twin(identity: Identity, rng: np.random.Generator) -> Identity:
    """Somebody of the train split who differs in little: mostly in what is on the head, else in pattern or accent."""
    if rng.random() < 0.3:
        others = [
            body
            for body in bodies("train", identity.species)
            if body[0] == identity.color and body[1:] != (identity.accent, identity.pattern)
        ]
        color, accent, pattern = others[rng.integers(len(others))]
        return dataclasses.replace(identity, color=color, accent=accent, pattern=pattern)
    while True:
        hat, color = HATS[rng.integers(len(HATS))], list(COLORS)[rng.integers(len(COLORS))]
        if identity.hat != "none" and rng.random() < 0.5:
            # The same hat in another colour, or another one in the same.
            hat, color = (identity.hat, color) if rng.random() < 0.5 else (hat, identity.hat_color)
        horns = bool(hat == "none" and identity.species in HORNED and rng.random() < 0.5)
        other = dataclasses.replace(identity, hat=hat, hat_color="none" if hat == "none" else color, horns=horns)
        if other.key != identity.key and color != identity.color:
            return other


def draw(index: int, twins: bool = False, size: int = 64, reference_size: int = 32) -> Lessons:
    """One lesson.

    `frame` [size size 3], `heat` and `cover` [K h w] (the bump of each subject's centre; the share of each place that
    shows it), `references` [K s s 3], `count` of subjects and `place`; K is padded to `MOST_SUBJECTS`. With `twins`,
    also a picture of somebody very like each subject.
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
    if twins:
        lesson["twins"] = np.full_like(lesson["references"], 255)
        for number, actor in enumerate(scene.actors):
            lesson["twins"][number] = picture(reference(twin(actor.subject, rng), rng), reference_size)
    return lesson


def prepare(folder: Path, first: int, count: int, workers: int, twins: bool = False) -> Lessons:
    """`count` lessons from the shard `first` on, stacked: read from files of an earlier call, else drawn now."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(first, first - (-count // SHARD))
    missing = [(folder, shard, twins) for shard in shards if not _file(folder, shard).exists()]
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


def _draw_shard(task: tuple[Path, int, bool]) -> None:
    folder, shard, twins = task
    lessons = [draw(index, twins) for index in range(shard * SHARD, (shard + 1) * SHARD)]
    partial = folder / f"{shard:04d}.partial.npz"
    np.savez(partial, **{name: np.stack([lesson[name] for lesson in lessons]) for name in lessons[0]})
    partial.replace(_file(folder, shard))
