"""How close a video comes to a reference that was cut out and pasted."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from cinema_jax.data.example import Reference
from cinema_jax.data.sheets import spread

# Heights of the pasted subject, in frame heights; factors of the best of them that are tried next; frames searched.
HEIGHTS = np.geomspace(0.3, 0.78, 8)
NEARBY = (0.935, 0.967, 1.034, 1.068)
FRAMES = 3


def closeness(
    video: UInt8[np.ndarray, "frames height width 3"], references: Sequence[Reference]
) -> Float[np.ndarray, "K"]:
    """The best match of each reference's own pixels, at any place, of any size and mirrored or not.

    Correlation of colours inside the mask after their means are taken off, in [-1, 1]; 1 is the very picture.
    """
    frames = spread(video, FRAMES)
    return np.array([_best(frames, reference) for reference in references])


def _best(frames: Sequence[np.ndarray], reference: Reference) -> float:
    image, mask = _cropped(reference)
    views = [(image, mask), (image[:, ::-1], mask[:, ::-1])]
    found = [
        (_match(frame, *view, share), share, view, frame) for share in HEIGHTS for view in views for frame in frames
    ]
    best, share, view, frame = max(found, key=lambda match: match[0])
    return max(best, *(_match(frame, *view, share * factor) for factor in NEARBY))


def _match(frame: np.ndarray, image: np.ndarray, mask: np.ndarray, share: float) -> float:
    """The best correlation at any place, with the picture `share` of the frame high; -1 where it does not fit."""
    height, width = frame.shape[:2]
    rows = round(share * height)
    columns = round(rows * image.shape[1] / image.shape[0])
    if rows > height or not 4 <= columns <= width:
        return -1.0
    small, inside = (
        cv2.resize(np.ascontiguousarray(x), (columns, rows), interpolation=cv2.INTER_AREA) for x in (image, mask)
    )
    weight = np.repeat((inside > 127)[..., None], 3, axis=-1).astype(np.float32)
    scores = cv2.matchTemplate(np.float32(frame), np.float32(small), cv2.TM_CCOEFF_NORMED, mask=weight)
    # Where the frame is of one colour there is nothing to correlate.
    return float(np.nan_to_num(scores, nan=-1.0, posinf=-1.0, neginf=-1.0).clip(-1, 1).max())


def _cropped(reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """The picture and its mask, no larger than the subject."""
    if reference.mask is None:
        return reference.image, np.full(reference.image.shape[:2], 255, np.uint8)
    rows, columns = np.nonzero(reference.mask > 127)
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    return reference.image[box], reference.mask[box]
