"""Draws the pictures of this folder: four birds on which nothing was trained, each with its mask as transparency.

python examples/make.py
"""

from pathlib import Path

import numpy as np

from cinema_jax.data.critters.examples import cutout
from cinema_jax.data.critters.identity import draw_identity
from cinema_jax.data.critters.source import reference

FOLDER, SIZE = Path(__file__).parent, 128
COLORS = ("blue", "red", "green", "yellow")


def main() -> None:
    """The first bird of each colour among the critters of the test split."""
    left, seed = list(COLORS), 0
    while left:
        bird = draw_identity(seed, "test", species="bird")
        if bird.color in left:
            left.remove(bird.color)
            cutout(reference(bird, np.random.default_rng(seed), SIZE)).save(FOLDER / f"{bird.color}_bird.png")
            print(f"{bird.color}_bird.png: a {bird.describe()}")
        seed += 1


if __name__ == "__main__":
    main()
