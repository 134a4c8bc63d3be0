"""Films made for tests: each scene is a view that moves over a texture of its own."""

from pathlib import Path

import cv2
import numpy as np
from clips import write_images

FPS = 10
SIZE = 240, 320


def texture(seed: int, height: int = 400, width: int = 560) -> np.ndarray:
    """Patches of colour with sharp edges, other ones for each seed."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), rng.integers(60, 200, 3), np.uint8)
    for _ in range(60):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        corner = x + int(rng.integers(20, 120)), y + int(rng.integers(20, 120))
        cv2.rectangle(picture, (x, y), corner, rng.integers(20, 235, 3).tolist(), -1)
    return picture


def scene(seed: int, frames: int, speed: float = 3.0, shake: float = 0.0) -> list[np.ndarray]:
    """A pan of `speed` pixels a frame, which `shake` moves up and down by so many."""
    large, (height, width) = texture(seed), SIZE
    views = []
    for i in range(frames):
        x, y = int(i * speed) % (large.shape[1] - width), int(40 + shake * (-1) ** i)
        views.append(large[y : y + height, x : x + width])
    return views


def film(path: Path, lengths: dict[int, int]) -> Path:
    """A film of scenes, each by its seed with a number of frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_images(path, [view for seed, frames in lengths.items() for view in scene(seed, frames)], FPS)
    return path
