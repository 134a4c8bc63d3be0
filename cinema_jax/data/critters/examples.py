"""Pictures and prompts to click on: drawn subjects that nothing was trained on."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from cinema_jax.data.critters.identity import draw_identity
from cinema_jax.data.critters.source import Critters, reference
from cinema_jax.data.example import Reference

# Scenes of the test split with two, three, one and two subjects whose pictures show well what they are.
_COUNTS = (2, 3, 1, 2)
# What the birds of `examples/` are told apart by, and the pixels of their pictures.
_COLORS, _SIZE = ("blue", "red", "green", "yellow"), 128


def write_examples(folder: Path, most: int) -> list[tuple[list[str], str]]:
    """Writes the pictures of some examples; returns the files and the prompt of each, those of fewest subjects first.

    Args:
        most: references that the checkpoint accepts.
    """
    source, found = Critters("test", seed=2), []
    counts = [count for count in _COUNTS if count <= most]
    for index in range(len(source)):
        if not counts:
            break
        conditions = source.conditions(index, np.random.default_rng(index))
        if len(conditions.references) != counts[0]:
            continue
        counts.pop(0)
        files = [folder / f"{picture.noun}_{index}.png" for picture in conditions.references]
        for picture, file in zip(conditions.references, files, strict=True):
            cutout(picture).save(file)
        found.append(([str(file) for file in files], conditions.prompt))
    return sorted(found, key=lambda example: len(example[0]))


def write_birds(folder: Path) -> dict[str, str]:
    """Writes the pictures of `examples/`: four birds on which nothing was trained, each with its mask as transparency.

    Returns the description of each by its file.
    """
    found: dict[str, str] = {}
    for seed in itertools.count():
        bird = draw_identity(seed, "test", species="bird")
        file = str(folder / f"{bird.color}_bird.png")
        if bird.color in _COLORS and file not in found:
            cutout(reference(bird, np.random.default_rng(seed), _SIZE)).save(file)
            found[file] = bird.describe()
        if len(found) == len(_COLORS):
            break
    return found


def cutout(picture: Reference) -> Image.Image:
    """A reference as a picture whose transparency is its mask."""
    mask = np.full(picture.image.shape[:2], 255, np.uint8) if picture.mask is None else picture.mask
    return Image.fromarray(np.dstack([picture.image, mask]))
