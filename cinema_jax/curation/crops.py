"""Subjects: boxes that agree in several frames, a mask within one of them, and the picture that is cut out."""

import dataclasses
import itertools

import cv2
import numpy as np
from jaxtyping import UInt8

from cinema_jax.errors import InputError

# Left, top, right, bottom, from 0 to 1.
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class CropConfig:
    """Which subjects are kept.

    Attributes:
        most: of a clip.
        most_move: how far a box's middle may be from that in the frame before, in diagonals of the frame.
        most_growth: how many times as large the largest box of a subject may be as its smallest.
        most_overlap: of the boxes of two subjects, their common part as a share of what both cover.
        least_side: pixels of the picture's shorter side.
        least_share, most_share: of the frame, that the box covers.
        most_edges: sides of the frame that the box may touch: there the subject is cut off.
        least_mask: share of its box that a mask must cover.
        least_sharpness: variance of the Laplacian of luma, as it lies in the frame.
    """

    most: int = 4
    most_move: float = 0.3
    most_growth: float = 4.0
    most_overlap: float = 0.8
    least_side: int = 96
    least_share: float = 0.01
    most_share: float = 0.8
    most_edges: int = 1
    least_mask: float = 0.2
    least_sharpness: float = 20.0

    def __post_init__(self):
        if self.most < 1 or self.most_growth < 1 or not 0 < self.least_share < self.most_share <= 1:
            raise InputError("most and most_growth must be at least 1, and 0 < least_share < most_share <= 1")


def disagreement(boxes: list[list[Box]], config: CropConfig) -> tuple[str, str] | None:
    """Why boxes of one noun, those of each frame, are not of one subject, in short and exactly; None: they are."""
    counts = [len(own) for own in boxes]
    if 0 in counts:
        return "not in every frame", f"boxes in each frame: {counts}"
    if max(counts) > 1:
        return "several of a kind", f"boxes in each frame: {counts}"
    own = [one for (one,) in boxes]
    moves = [float(np.hypot(*(_middle(b) - _middle(a)))) / np.sqrt(2) for a, b in itertools.pairwise(own)]
    if max(moves) > config.most_move:
        return "boxes far apart", f"{max(moves):.2f} of the diagonal; at most {config.most_move:g}"
    growth = max(map(area, own)) / min(map(area, own))
    if growth > config.most_growth:
        return "boxes of other sizes", f"{growth:.1f} times as large; at most {config.most_growth:g}"
    return None


def area(box: Box) -> float:
    """The share of the frame that a box covers."""
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(one: Box, other: Box) -> float:
    """The common part of two boxes as a share of what both cover."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    return common / (area(one) + area(other) - common)


def cut_out(
    frame: UInt8[np.ndarray, "height width 3"], box: Box, config: CropConfig
) -> tuple[UInt8[np.ndarray, "h w 4"] | None, tuple[str, str] | None]:
    """A subject with its mask as transparency, or None and why it is not kept.

    The mask is GrabCut's, from the box and nothing else: it knows colours, and not what a subject is.
    """
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = (round(side * size) for side, size in zip(box, (width, height, width, height), strict=True))
    edges = sum((x0 <= 1, y0 <= 1, x1 >= width - 1, y1 >= height - 1))
    share, least = area(box), min(x1 - x0, y1 - y0)
    picture = frame[y0:y1, x0:x1]
    sharp = 0.0 if least < 1 else float(cv2.Laplacian(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())
    rules = (
        ("too small", least < config.least_side, f"{x1 - x0}x{y1 - y0}; at least {config.least_side}"),
        ("too small in the frame", share < config.least_share, f"{share:.1%}; at least {config.least_share:.1%}"),
        ("too large in the frame", share > config.most_share, f"{share:.1%}; at most {config.most_share:.1%}"),
        ("cut off", edges > config.most_edges, f"touches {edges} sides of the frame; at most {config.most_edges}"),
        ("blurred", sharp < config.least_sharpness, f"sharpness {sharp:.1f}; at least {config.least_sharpness:g}"),
    )
    if wrong := next(((name, why) for name, is_so, why in rules if is_so), None):
        return None, wrong
    mask = _grab_cut(frame, (x0, y0, x1, y1))
    covered = float((mask > 0).mean())
    if covered < config.least_mask:
        return None, ("no mask", f"covers {covered:.1%} of its box; at least {config.least_mask:.1%}")
    return np.dstack([picture, mask]), None


def _grab_cut(frame: UInt8[np.ndarray, "height width 3"], box: tuple[int, int, int, int]) -> UInt8[np.ndarray, "h w"]:
    """The largest connected part of what GrabCut takes for foreground, within the box."""
    x0, y0, x1, y1 = box
    labels = np.full(frame.shape[:2], cv2.GC_BGD, np.uint8)
    labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if x1 - x0 == frame.shape[1] and y1 - y0 == frame.shape[0]:
        # It needs to see some background.
        labels[[0, -1]] = cv2.GC_BGD
    # It draws at random where it begins.
    cv2.setRNGSeed(0)
    bgr = np.ascontiguousarray(frame[..., ::-1])
    cv2.grabCut(bgr, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK)
    inside = np.isin(labels[y0:y1, x0:x1], (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(inside)
    if count < 2:
        return np.zeros_like(inside)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return np.where(parts == largest, np.uint8(255), np.uint8(0))


def _middle(box: Box) -> np.ndarray:
    return np.array([box[0] + box[2], box[1] + box[3]]) / 2
