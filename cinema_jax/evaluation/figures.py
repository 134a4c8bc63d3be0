"""Figures with intervals: shares and means over cases.

An interval says what other cases could have given, with the same weights; another seed of training is not in it.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy.special import betaincinv

RESAMPLES = 2000
SEED = 0
# How sure the interval is.
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Figure:
    """A mean over all subjects (or videos) of some cases; `low` and `high` bound its 95 % interval over cases."""

    value: float
    low: float
    high: float
    count: int


def figure(sums: Float[np.ndarray, "cases"], counts: Int[np.ndarray, "cases"]) -> Figure | None:
    """The mean of what each case adds up to over how many it counts; None where nothing was counted.

    Its interval is by resampling whole cases: subjects of one video are not independent.
    """
    sums, counts = _counted(sums, counts)
    if not len(counts):
        return None
    rows = np.random.default_rng(SEED).integers(len(counts), size=(RESAMPLES, len(counts)))
    means = sums[rows].sum(axis=1) / counts[rows].sum(axis=1)
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Figure(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()))


def proportion(sums: Float[np.ndarray, "cases"], counts: Int[np.ndarray, "cases"]) -> Figure | None:
    """The share of yes among each case's answers of yes or no; None where nothing was counted.

    Bounds are exact (Clopper and Pearson 1934), also where all answers agree and resampling would show no doubt at all.
    Answers of one video are not independent: their number is taken as that of independent ones with the same variance
    between cases (Korn and Graubard 1998), and as the number of cases where all answers agree.
    """
    sums, counts = _counted(sums, counts)
    if not len(counts):
        return None
    total = counts.sum()
    share = sums.sum() / total
    between = np.sum((sums - share * counts) ** 2) / total**2
    number = min(total, share * (1 - share) / between) if 0 < share < 1 and between > 0 else len(counts)
    yes, tail = share * number, (1 - LEVEL) / 2
    low = betaincinv(yes, number - yes + 1, tail) if share > 0 else 0.0
    high = betaincinv(yes + 1, number - yes, 1 - tail) if share < 1 else 1.0
    return Figure(float(share), float(low), float(high), int(total))


def _counted(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of those cases that count anything."""
    return sums[counts > 0], counts[counts > 0]
