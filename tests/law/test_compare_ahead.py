"""What is forecast of runs beyond the ladders, on pairs of ladders whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nachim.law import LAWS, Observations
from nachim.law.compare import compare
from nachim.law.compare_ahead import _Place, ahead, multiplier_of
from tests.law.ladders import TRUTH
from tests.law.paired import paired

TIMES = 30
LAW, THETA = LAWS["chinchilla"], TRUTH["chinchilla"]
SHARE = THETA["beta"] / (THETA["alpha"] + THETA["beta"])


def below(both: tuple[Observations, Observations], times: float):
    """The runs that cost at most the dearest's `times`-th part, and the dearest pair: (ladders, pair)."""
    top = int(np.argmax(both[0].flops))
    small = both[0].flops <= both[0].flops[top] / times
    return tuple(table.subset(small) for table in both), tuple(table.subset(np.array([top])) for table in both)


@pytest.mark.parametrize("trend", [0.0, -0.03], ids=["constant", "vanishing"])
def test_the_interval_holds_what_the_larger_pair_measures(trend):
    rng, inside, held = np.random.default_rng(4), 0, 0
    for _ in range(TIMES):
        both = paired(rng, lambda flops: 1.2 * (flops / 1e15) ** trend)
        ladders, (base, idea) = below(both, 4.0)
        told = ahead(compare(*ladders), float(base.flops[0] / base.tokens[0]), float(base.tokens[0]))
        inside += told.ratio[1] <= idea.loss[0] / base.loss[0] <= told.ratio[2]
        held += told.multiplier[1] <= 1.2 * (base.flops[0] / 1e15) ** trend <= told.multiplier[2]
    assert stats.binomtest(int(inside), TIMES, 0.95).pvalue > 0.01
    assert held >= inside - 3  # the interval of a pair is wider than that of the truth


def test_several_pairs_are_known_better_than_one():
    worth = compare(*paired(np.random.default_rng(5), 1.2))
    one, four = (ahead(worth, 5e7, 1e9, pairs) for pairs in (1, 4))
    assert one.ratio[0] == four.ratio[0]
    assert one.ratio[1] < four.ratio[1] < four.ratio[2] < one.ratio[2]


def test_a_ratio_of_losses_comes_to_the_multiplier_behind_it():
    x, tokens = np.repeat(np.geomspace(3e5, 1.2e7, 5), 6), np.tile(np.geomspace(5, 160, 6), 5)
    base = Observations(tokens=tokens * x, params=x, loss=LAW.predict(THETA, x, tokens * x))
    noise = np.exp(1e-7 * np.random.default_rng(6).standard_normal(30))
    idea = Observations(tokens=tokens * x, params=x, loss=base.loss * noise)
    worth, big = compare(base, idea), (4e7, 4e9)
    for m in (0.7, 1.0, 1.5):
        wanted = LAW.predict(THETA, big[0] * m**SHARE, big[1] * m ** (1 - SHARE)) / LAW.predict(THETA, *big)
        assert multiplier_of(worth, 6 * big[0], big[1], float(wanted)) == pytest.approx(m, rel=2e-3)
    assert multiplier_of(worth, 6 * big[0], big[1], 1e-3) == pytest.approx(1e3)
    assert multiplier_of(worth, 6 * big[0], big[1], 1e3) == pytest.approx(1e-3)


def test_the_slope_is_that_of_the_difference():
    worth = compare(*paired(np.random.default_rng(7), 1.3))
    place = _Place(worth, 6e7, 3e9)
    value, slope = place.difference(place.log_multiplier)
    for number, step in enumerate(1e-5 * np.eye(len(slope))):
        moved = worth.solved.point + step
        shifted = _Place(worth, 6e7, 3e9)
        effects = len(place.columns)
        shifted.law = moved[effects:]
        found = shifted.difference(float(moved[:effects] @ place.columns))[0]
        assert (found - value) / 1e-5 == pytest.approx(slope[number], rel=1e-3, abs=1e-6)
