"""Cut-out photographs of things that no stage was trained on, for `evaluate --subjects`:

    pip download --no-deps -d wheels gradio imgaug==0.4.0 matplotlib scikit-image scikit-learn ultralytics
    python benchmarks/photographs.py --wheels=wheels --output=photographs
    python -m cinema_jax.evaluate --subjects=photographs --output=evaluation_photographs

takes example pictures out of Python packages and cuts the subject of each out by GrabCut, from a box drawn by hand. The
pictures are not part of this project; each package's own licence holds for its pictures.
"""

import zipfile
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags

WHEELS = flags.DEFINE_string("wheels", None, "The folder of the wheels.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The folder of the cut-outs.", required=True)
# Name of the subject: where its picture lies in a wheel, and its box (left, top, right, bottom) in pixels.
PICTURES = {
    "astronaut": ("skimage/data/astronaut.png", (5, 5, 375, 507)),
    "bus": ("ultralytics/assets/bus.jpg", (10, 240, 800, 750)),
    "cat": ("skimage/data/chelsea.png", (2, 2, 390, 298)),
    "cheetah": ("gradio/media_assets/images/cheetah1.jpg", (12, 12, 250, 254)),
    "coach": ("ultralytics/assets/zidane.jpg", (240, 70, 810, 718)),
    "cup": ("skimage/data/coffee.png", (70, 8, 485, 390)),
    "flower": ("sklearn/datasets/images/flower.jpg", (168, 82, 452, 362)),
    "leopard": ("gradio/media_assets/images/cheetah.jpg", (80, 110, 385, 238)),
    "motorcycle": ("skimage/data/motorcycle_left.png", (38, 28, 697, 460)),
    "officer": ("matplotlib/mpl-data/sample_data/grace_hopper.jpg", (25, 15, 490, 597)),
    "quokka": ("imgaug/quokka.jpg", (160, 40, 555, 640)),
    "rocket": ("skimage/data/rocket.jpg", (298, 120, 345, 412)),
    "tower": ("gradio/media_assets/images/tower.jpg", (28, 70, 345, 597)),
}
SIDE = 256  # pixels of the longer side: GrabCut is slow on more


def cut_out(picture: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """BGRA of what GrabCut takes for the subject in the box."""
    factor = min(1.0, SIDE / max(picture.shape[:2]))
    small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    left, top, right, bottom = (round(side * factor) for side in box)
    mask = np.zeros(small.shape[:2], np.uint8)
    cv2.setRNGSeed(0)
    rectangle = (left, top, right - left, bottom - top)
    cv2.grabCut(small, mask, rectangle, np.zeros((1, 65)), np.zeros((1, 65)), 8, cv2.GC_INIT_WITH_RECT)
    inside = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    # The largest piece, without its holes.
    count, pieces, sizes, _ = cv2.connectedComponentsWithStats(inside)
    inside = (pieces == 1 + sizes[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8) if count > 1 else inside
    inside = cv2.morphologyEx(inside, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    alpha = cv2.GaussianBlur(255 * inside, (0, 0), 0.7)
    return np.dstack([small, alpha])[top:bottom, left:right]


def main(argv: list[str]) -> None:
    """Write one PNG for each picture that the wheels hold."""
    del argv
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    found = {}
    for wheel in sorted(Path(WHEELS.value).glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            found |= {path: archive.read(path) for path, _ in PICTURES.values() if path in names}
    if missing := sorted(path for path, _ in PICTURES.values() if path not in found):
        raise app.UsageError(f"no wheel in {WHEELS.value} holds {', '.join(missing)}")
    for name, (path, box) in PICTURES.items():
        picture = cv2.imdecode(np.frombuffer(found[path], np.uint8), cv2.IMREAD_COLOR)
        cv2.imwrite(str(output / f"{name}.png"), cut_out(picture, box))
    print(f"{output}: {len(PICTURES)} cut-outs")


if __name__ == "__main__":
    app.run(main)
