"""Draws the pictures of this folder: four birds on which nothing was trained, each with its mask as transparency.

python examples/make.py
"""

from pathlib import Path

from cinema_jax.data.critters.examples import write_birds

FOLDER = Path(__file__).parent


def main() -> None:
    """The first bird of each colour among the critters of the test split."""
    for file, description in write_birds(FOLDER).items():
        print(f"{Path(file).name}: a {description}")


if __name__ == "__main__":
    main()
