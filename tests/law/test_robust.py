from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nachim.law.robust import Robust


def least_squares(slope, target, cluster) -> Robust:
    point = np.linalg.lstsq(slope, target, rcond=None)[0]
    return Robust(point, slope, target - slope @ point, cluster)


def test_the_mean_of_independent_values_has_the_t_interval():
    values = np.random.default_rng(0).normal(2, 1, 12)
    solved = least_squares(np.ones((12, 1)), values, np.arange(12))
    error, freedom = solved.spread(np.ones(1))
    assert error == pytest.approx(stats.sem(values))
    assert freedom == pytest.approx(11)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert solved.interval(np.ones(1))[1:] == pytest.approx(expected)
    assert solved.p_value(np.ones(1)) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_equal_clusters_have_the_t_interval_of_their_means():
    values = np.random.default_rng(1).normal(size=(6, 4))
    solved = least_squares(np.ones((24, 1)), values.ravel(), np.repeat(np.arange(6), 4))
    error, freedom = solved.spread(np.ones(1))
    assert error == pytest.approx(stats.sem(values.mean(axis=1)))
    assert freedom == pytest.approx(5)


def test_a_difference_of_two_groups_has_welchs_freedom_or_about():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=5), rng.normal(size=20)
    slope = np.stack([np.ones(25), np.repeat([0.0, 1.0], [5, 20])], axis=1)
    solved = least_squares(slope, np.concatenate([a, b]), np.arange(25))
    error, freedom = solved.spread(np.array([0.0, 1.0]))
    assert error**2 == pytest.approx(a.var(ddof=1) / 5 + b.var(ddof=1) / 20)
    equal = (1 / 5 + 1 / 20) ** 2 / ((1 / 5) ** 2 / 4 + (1 / 20) ** 2 / 19)
    assert freedom == pytest.approx(equal)


def test_few_unequal_clusters_are_covered():
    rng = np.random.default_rng(3)
    cluster = np.repeat(np.arange(6), [2, 3, 4, 5, 6, 10])
    slope = np.stack([np.ones(30), rng.normal(size=30)], axis=1)
    inside = 0
    for _ in range(400):
        noise = rng.normal(size=6)[cluster] + 0.5 * rng.normal(size=30)
        _, low, high = least_squares(slope, noise, cluster).interval(np.array([1.0, 0.0]))
        inside += low <= 0 <= high
    assert 0.92 <= inside / 400 <= 0.98
