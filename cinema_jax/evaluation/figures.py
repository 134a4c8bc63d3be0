"""Figures with intervals: shares and means over cases."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 2000
SEED = 0
# How sure the interval is.
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Figure:
    """A mean over all subjects (or videos) of some cases.

    `low` and `high` bound its 95 % interval, by resampling whole cases: subjects of one video are not independent.
    """

    value: float
    low: float
    high: float
    count: int


def figure(sums: Float[np.ndarray, "cases"], counts: Int[np.ndarray, "cases"]) -> Figure | None:
    """The mean of what each case adds up to over how many it counts; None where nothing was counted."""
    kept = counts > 0
    sums, counts = sums[kept], counts[kept]
    if not len(counts):
        return None
    rows = np.random.default_rng(SEED).integers(len(counts), size=(RESAMPLES, len(counts)))
    means = sums[rows].sum(axis=1) / counts[rows].sum(axis=1)
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Figure(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()))
