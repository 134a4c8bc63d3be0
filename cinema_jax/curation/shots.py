"""Where a video's shots begin, and the clips that are cut out of them."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8

from cinema_jax.errors import InputError

# What cuts are looked for in: smaller pictures show them as well.
LONGER_SIDE = 256


@dataclasses.dataclass(frozen=True)
class ShotConfig:
    """How shots are found, and what becomes a clip.

    Attributes:
        contrast: how many times as much as around it the picture must change at a cut; PySceneDetect's
            `adaptive_threshold`.
        least_change: how much it must change at least, from 0 to 255; its `min_content_val`.
        margin: seconds that are left out on both sides of a cut, where frames are often blended.
        shortest: seconds that a clip must have.
        longest: seconds that it may have; a longer shot becomes several clips of one length.
    """

    contrast: float = 3.0
    least_change: float = 15.0
    margin: float = 0.04
    shortest: float = 2.0
    longest: float = 10.0

    def __post_init__(self):
        if not 0 < self.shortest <= self.longest / 2:
            raise InputError(
                f"shortest is {self.shortest:g} and longest {self.longest:g}; shortest must be above 0 and at most "
                "half of longest, so that the parts of a long shot are long enough"
            )
        if self.contrast <= 1 or self.least_change < 0 or self.margin < 0:
            raise InputError("contrast must be above 1, least_change and margin at least 0")


@dataclasses.dataclass(frozen=True)
class Span:
    """A part of a video, in seconds after its first frame; `end` is not included."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


def cut_frames(frames: Iterable[UInt8[np.ndarray, "height width 3"]], config: ShotConfig) -> list[int]:
    """The numbers of the frames with which a new shot begins, ascending, without 0.

    Hard cuts are found, by PySceneDetect's adaptive detector; fades and dissolves are not.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode

    detector = AdaptiveDetector(config.contrast, min_scene_len=0, min_content_val=config.least_change)
    found: set[int] = set()
    last = None
    for number, frame in enumerate(frames):
        # It counts frames; times are ours, as a rate need not be constant.
        last = FrameTimecode(number, fps=25.0)
        found |= {cut.frame_num for cut in detector.process_frame(last, frame[..., ::-1])}
    if last is not None:
        found |= {cut.frame_num for cut in detector.post_process(last)}
    return sorted(found - {0})


def shots(
    frames: Iterable[tuple[float, UInt8[np.ndarray, "height width 3"]]], end: float, config: ShotConfig
) -> list[Span]:
    """The shots of a video.

    Args:
        frames: all of it, in order, each with the second at which it is shown first.
        end: of the video, in seconds.
    """
    times: list[float] = []

    def pictures():
        for time, picture in frames:
            times.append(time)
            yield picture

    cuts = cut_frames(pictures(), config)
    edges = [0.0, *(times[cut] for cut in cuts), max(end, times[-1] if times else 0.0)]
    return [Span(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]


def clips(shots: list[Span], config: ShotConfig) -> tuple[list[Span], list[Span]]:
    """The clips of a video's shots, and what is left of shots that are too short for one.

    Times are whole milliseconds, within which every reader of videos finds the same frame.
    """
    kept, short = [], []
    for number, shot in enumerate(shots):
        start = shot.start + config.margin * (number > 0)
        end = shot.end - config.margin * (number < len(shots) - 1)
        if end - start < config.shortest:
            short.append(Span(round(start, 3), max(start, end)))
            continue
        parts = math.ceil((end - start) / config.longest)
        edges = [round(start + (end - start) * i / parts, 3) for i in range(parts + 1)]
        kept += [Span(*pair) for pair in itertools.pairwise(edges)]
    return kept, short
