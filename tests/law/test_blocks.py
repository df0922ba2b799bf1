"""Treatments by seeds: intervals against the paired t-test and an analysis of variance, bottoms against known ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nachim.law.blocks import Blocks
from nachim.spec import UserError


def test_two_treatments_are_a_paired_t_test():
    rng = np.random.default_rng(3)
    loss = np.exp(rng.standard_normal((2, 6)) * 0.1 + rng.standard_normal(6) + [[0.2], [0.0]])
    blocks = Blocks(loss)
    best, other = blocks.best, 1 - blocks.best
    wanted = stats.ttest_rel(np.log(loss[other]), np.log(loss[best]))
    low, high = wanted.confidence_interval(0.9)
    above = np.log(loss[other]).mean() - np.log(loss[best]).mean()
    np.testing.assert_allclose(blocks.over_best(0.9)[other], np.expm1([above, low, high]))
    assert blocks.over_best()[best][0] == 0


def test_the_noise_is_what_neither_treatment_nor_seed_explains():
    """By least squares on indicators of both, the textbook's residual mean square."""
    rng = np.random.default_rng(0)
    log = rng.standard_normal((4, 3))
    treatment, seed = (np.repeat(np.eye(4), 3, axis=0), np.tile(np.eye(3), (4, 1)))
    _, _, rank, _ = np.linalg.lstsq(np.hstack([treatment, seed]), log.ravel(), rcond=None)
    left = log.ravel() - np.hstack([treatment, seed]) @ np.linalg.pinv(np.hstack([treatment, seed])) @ log.ravel()
    blocks = Blocks(np.exp(log))
    assert blocks.freedom == 12 - rank == 6
    assert blocks.noise == pytest.approx(np.sqrt((left**2).sum() / 6))


def test_a_seed_that_is_worse_for_all_is_no_noise():
    loss = np.exp(np.array([[0.0], [0.1], [0.3]]) + np.array([0.0, 0.5, -2.0]))
    assert Blocks(loss).noise == pytest.approx(0, abs=1e-12)
    assert Blocks(loss).over_best()[:, 0] == pytest.approx(np.expm1([0, 0.1, 0.3]))


def test_one_seed_says_nothing_of_noise():
    blocks = Blocks(np.array([[2.0], [1.0], [3.0]]))
    assert (blocks.freedom, blocks.best) == (0, 1)
    assert np.isnan(blocks.noise)
    assert blocks.over_best()[:, 0] == pytest.approx([1, 0, 2]) and np.isnan(blocks.over_best()[:, 1:]).all()


def test_a_parabola_s_bottom_is_found():
    at = np.array([256.0, 512, 1024, 2048, 4096, 8192])
    loss = np.exp(0.4 + 0.008 * np.log(at / 1500) ** 2)[:, None].repeat(2, axis=1)
    place, low, high = Blocks(loss).bottom(at)
    assert place == pytest.approx(1500, rel=1e-6) and low == pytest.approx(1500, rel=1e-3) == high


def test_the_bottom_s_interval_holds_it_nine_times_in_ten():
    at, rng, inside = 2.0 ** np.arange(8, 14), np.random.default_rng(0), 0
    log = 0.4 + 0.006 * np.log(at / 1500) ** 2
    for draw in range(100):
        noisy = log[:, None] + 0.003 * rng.standard_normal((6, 4)) + rng.standard_normal(4)
        _, low, high = Blocks(np.exp(noisy)).bottom(at, draw)
        inside += low <= 1500 <= high
    assert 80 <= inside <= 99


@pytest.mark.parametrize(
    "log", [np.arange(5) * 0.01, -np.arange(5) * 0.01, np.array([0, 0.004, 0.006, 0.004, 0.0]), [0, 0.01, 0.02, 1, 1]]
)
def test_no_bottom_within_the_treatments(log):
    assert Blocks(np.exp(np.asarray(log)[:, None])).bottom(2.0 ** np.arange(5)) is None


@pytest.mark.parametrize("loss", [np.ones(3), np.zeros((2, 2)), np.array([[1.0, np.nan]]), np.ones((0, 2))])
def test_a_table_with_holes_is_refused(loss):
    with pytest.raises(UserError, match="full table of positive numbers"):
        Blocks(loss)
