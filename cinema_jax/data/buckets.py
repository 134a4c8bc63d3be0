"""Buckets: videos of several sizes in one run, each of which trains at the size that is nearest to its own."""

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cinema_jax.data.video import VideoInfo, probe
from cinema_jax.errors import InputError


class Bucket(NamedTuple):
    """The shape of the examples that are in one batch."""

    frames: int
    height: int
    width: int
    # Most references of an example.
    references: int

    @property
    def name(self) -> str:
        """For instance 49x480x720x4."""
        return "x".join(map(str, self))


def choose(
    buckets: Sequence[Bucket], height: float | int, width: float | int, frames: float | int, subjects: int
) -> int | None:
    """Which bucket a clip belongs to; None: it fits none.

    Of those that it has the frames for, and that have room for its subjects, the one of the nearest aspect; among
    several the one of most frames, then of the largest size that the clip need not be enlarged for, then of fewest
    references.

    Args:
        height, width: pixels of the clip.
        frames: how many it has at the rate of training.
    """

    def order(i: int) -> tuple:
        bucket = buckets[i]
        aspect = round(abs(math.log(width / height) - math.log(bucket.width / bucket.height)), 6)
        enlarged = max(bucket.height / height, bucket.width / width) > 1
        area = bucket.height * bucket.width
        return aspect, -bucket.frames, enlarged, area if enlarged else -area, bucket.references

    fitting = (i for i, b in enumerate(buckets) if b.frames <= frames and b.references >= subjects)
    return min(fitting, key=order, default=None)


def probe_all(paths: Sequence[Path], threads: int = 8) -> list[VideoInfo | None]:
    """What each video holds, from its header and packets; None for one that cannot be read."""
    with ThreadPoolExecutor(threads) as pool:
        return list(tqdm(pool.map(_probe, paths), total=len(paths), desc="probe", unit="video"))


@functools.cache
def _probe(path: Path) -> VideoInfo | None:
    try:
        return probe(path)
    except InputError:
        return None
