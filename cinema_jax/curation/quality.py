"""What is wrong with a clip's pictures: black borders, blur, exposure, and too little or too much motion."""

import dataclasses
import itertools

import cv2
import numpy as np
from jaxtyping import UInt8

from cinema_jax.errors import InputError

# Of a frame that is measured: what is said of sharpness holds for this size. And of one whose flow is computed.
LONGER_SIDE, FLOW_SIDE = 448, 160
# What counts as black, from 0 to 255: videos do not reach 0 everywhere.
_BLACK = 24


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """What a clip must be like.

    Attributes:
        least_side: pixels of the video's shorter side.
        frames: those that are looked at, at most.
        fps: and how many of them show a second; flow is measured between neighbours.
        most_border: share of a side that may be black beside, above or below the picture.
        least_sharpness: variance of the Laplacian of luma (0 to 255) at 448 pixels.
        darkest: mean luma, from 0 to 255.
        brightest: mean luma.
        least_motion: mean optical flow, in diagonals of the frame a second; below it the clip is a still.
        most_motion: the same; above it nothing can be followed.
        most_shake: mean change of the whole frame's flow from one pair of frames to the next, in the same unit: a pan
            is motion without shake.
    """

    least_side: int = 240
    frames: int = 80
    fps: float = 8.0
    most_border: float = 0.02
    least_sharpness: float = 20.0
    darkest: float = 20.0
    brightest: float = 235.0
    least_motion: float = 0.002
    most_motion: float = 1.0
    most_shake: float = 0.25

    def __post_init__(self):
        if self.frames < 3 or not self.fps > 0:
            raise InputError("frames must be at least 3, and fps above 0")


@dataclasses.dataclass(frozen=True)
class Measures:
    """Of a clip; see `QualityConfig` for the units."""

    border: float
    sharpness: float
    brightness: float
    motion: float
    shake: float


def measure(frames: UInt8[np.ndarray, "frames height width 3"], fps: float) -> Measures:
    """Measures of frames whose longer side is `LONGER_SIDE`, `fps` of which show a second; at least three."""
    luma = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    # Three are enough to see blur; the sharpest counts, as motion blurs some.
    sharp = max(float(cv2.Laplacian(luma[i], cv2.CV_64F).var()) for i in (0, len(luma) // 2, -1))
    motion, shake = _motion(luma, fps)
    values = _border(luma), sharp, float(luma.mean()), motion, shake
    # Rounded, so that a last bit of some processor does not show in a file.
    return Measures(*(float(f"{value:.5g}") for value in values))


def fault(measures: Measures, config: QualityConfig) -> tuple[str, str] | None:
    """What a clip is rejected for, a few words and a sentence; None: nothing."""
    m, c = measures, config
    rules = (
        ("black borders", m.border > c.most_border, f"{m.border:.1%} of a side; at most {c.most_border:.1%}"),
        ("too dark", m.brightness < c.darkest, f"mean luma {m.brightness:g}; at least {c.darkest:g}"),
        ("too bright", m.brightness > c.brightest, f"mean luma {m.brightness:g}; at most {c.brightest:g}"),
        ("blurred", m.sharpness < c.least_sharpness, f"sharpness {m.sharpness:g}; at least {c.least_sharpness:g}"),
        ("still", m.motion < c.least_motion, f"motion {m.motion:g} diagonals a second; at least {c.least_motion:g}"),
        ("too fast", m.motion > c.most_motion, f"motion {m.motion:g} diagonals a second; at most {c.most_motion:g}"),
        ("shaky", m.shake > c.most_shake, f"shake {m.shake:g} diagonals a second; at most {c.most_shake:g}"),
    )
    return next(((name, why) for name, wrong, why in rules if wrong), None)


def _border(luma: UInt8[np.ndarray, "frames height width"]) -> float:
    """The share of a side that is black in all frames, from the edges inwards; of a black clip 0: that is exposure."""
    peak = luma.max(axis=0)
    shares = []
    for axis in (1, 0):
        # A few bright points, as of a logo's edge or of noise, make no picture.
        lit = np.flatnonzero(np.percentile(peak, 98, axis=axis) > _BLACK)
        if len(lit) == 0:
            return 0.0
        count = peak.shape[1 - axis]
        shares.append((lit[0] + count - 1 - lit[-1]) / count)
    return float(max(shares))


def _motion(luma: UInt8[np.ndarray, "frames height width"], fps: float) -> tuple[float, float]:
    height, width = luma.shape[1:]
    scale = min(1.0, FLOW_SIDE / max(height, width))
    size = max(16, round(width * scale)), max(16, round(height * scale))
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in luma]
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    unit = fps / float(np.hypot(*size))
    flows = [flow.calc(one, other, None) * unit for one, other in itertools.pairwise(small)]
    whole = np.stack([np.median(one.reshape(-1, 2), axis=0) for one in flows])
    return (
        float(np.mean([np.linalg.norm(one, axis=-1).mean() for one in flows])),
        float(np.linalg.norm(np.diff(whole, axis=0), axis=1).mean()),
    )
