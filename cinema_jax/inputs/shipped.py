"""What ships beside the code: the experiments of `configs/`, and the weights that they start from.

In a checkout they lie in its root. A wheel holds copies of them inside the package, which setup.py makes.
"""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
COPIES = PACKAGE / "shipped"
# Folders of weights that configs name.
WEIGHTS = ("weights/demo_pretrain",)


def root() -> Path:
    """The folder that holds `configs/` and `weights/`."""
    return COPIES if COPIES.is_dir() else PACKAGE.parent


def config(name: str) -> Path | None:
    """The shipped config of a name such as `configs/demo.py`; None where there is none."""
    file = root() / name
    inside = Path(name).parts[:1] == ("configs",) and ".." not in Path(name).parts
    return file if inside and file.is_file() else None


def weights(name: str) -> Path | None:
    """The shipped folder of weights of a name such as `weights/demo_pretrain`; None where there is none."""
    folder = root() / name
    return folder if name in WEIGHTS and folder.is_dir() else None
