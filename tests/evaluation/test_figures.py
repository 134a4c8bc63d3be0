"""Figures and their intervals, against closed forms."""

import math

import numpy as np
import pytest

from cinema_jax.evaluation.figures import figure, proportion

both = pytest.mark.parametrize("kind", [figure, proportion])


@both
def test_a_figure_is_the_mean_over_all_subjects_and_not_over_cases(kind):
    found = kind(np.array([3.0, 0.0]), np.array([3, 1]))
    assert found.value == 0.75
    assert found.count == 4


def test_the_interval_of_a_mean_is_that_of_a_binomial_share_where_it_is_one():
    sums = (np.arange(400) < 100).astype(float)
    found = figure(sums, np.ones(400, int))
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    np.testing.assert_allclose([found.low, found.high], [0.25 - half, 0.25 + half], atol=0.006)


def tail(number, share, least):
    """The probability of at least so many of `number` independent answers."""
    return sum(math.comb(number, k) * share**k * (1 - share) ** (number - k) for k in range(least, number + 1))


@pytest.mark.parametrize(("yes", "number"), [(43, 43), (0, 43), (37, 42), (1, 5), (19, 43)])
def test_the_bounds_of_a_proportion_are_exact(yes, number):
    found = proportion((np.arange(number) < yes).astype(float), np.ones(number, int))
    assert found.value == yes / number
    if yes:
        np.testing.assert_allclose(tail(number, found.low, yes), 0.025, rtol=1e-6)
    if yes < number:
        np.testing.assert_allclose(1 - tail(number, found.high, yes + 1), 0.025, rtol=1e-6)
    assert (found.low == 0) == (yes == 0)
    assert (found.high == 1) == (yes == number)


def test_subjects_that_always_agree_with_the_others_of_their_video_count_once():
    sums = (np.arange(40) < 30).astype(float)
    alone, together = proportion(sums, np.ones(40, int)), proportion(3 * sums, np.full(40, 3))
    np.testing.assert_allclose([alone.low, alone.high], [together.low, together.high], rtol=1e-6)
    assert (alone.count, together.count) == (40, 120)


@pytest.mark.parametrize("share", [0.5, 0.97])
def test_the_bounds_hold_the_truth_in_95_of_100_suites_where_videos_differ(share):
    rng = np.random.default_rng(0)
    # Some videos are easier than others.
    easy = rng.beta(4 * share, 4 * (1 - share), size=(1000, 72))
    found = [proportion(rng.binomial(3, row).astype(float), np.full(72, 3)) for row in easy]
    assert np.mean([x.low <= share <= x.high for x in found]) > 0.94


@both
def test_cases_that_count_nothing_change_nothing(kind):
    assert kind(np.array([1.0, 0.0, 0.0]), np.array([1, 0, 1])) == kind(np.array([1.0, 0.0]), np.array([1, 1]))


@both
def test_nothing_counted_is_no_figure(kind):
    assert kind(np.zeros(3), np.zeros(3, int)) is None
