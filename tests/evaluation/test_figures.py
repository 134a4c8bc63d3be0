"""Figures and their intervals, against closed forms."""

import numpy as np

from cinema_jax.evaluation.figures import figure


def test_a_figure_is_the_mean_over_all_subjects_and_not_over_cases():
    found = figure(np.array([3.0, 0.0]), np.array([3, 1]))
    assert found.value == 0.75
    assert found.count == 4


def test_the_interval_is_that_of_a_binomial_share():
    sums = (np.arange(400) < 100).astype(float)
    found = figure(sums, np.ones(400, int))
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    np.testing.assert_allclose([found.low, found.high], [0.25 - half, 0.25 + half], atol=0.006)


def test_cases_that_count_nothing_change_nothing():
    assert figure(np.array([1.0, 0.0, 0.0]), np.array([1, 0, 1])) == figure(np.array([1.0, 0.0]), np.array([1, 1]))


def test_nothing_counted_is_no_figure():
    assert figure(np.zeros(3), np.zeros(3, int)) is None
