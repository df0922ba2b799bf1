from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nachim.law import LAWS, Observations
from nachim.law.compare import compare, compare_all
from nachim.spec.error import UserError
from tests.law.ladders import TRUTH
from tests.law.paired import paired

TIMES = 60
"""Simulations a test: enough to see an interval that is wrong, not one that is a little off (docs/compare.md)."""


def thin(obs: Observations, n: int) -> Observations:
    return obs.subset(np.arange(n))


def holds(covered: int, times: int) -> bool:
    """Whether so many hits are what 95 % intervals may have."""
    return stats.binomtest(covered, times, 0.95).pvalue > 0.01


@pytest.mark.parametrize("trunk", [0.0, 0.005], ids=["independent", "trunks"])
def test_an_idea_worth_nothing_is_found_so(trunk):
    rng = np.random.default_rng(0)
    found = [compare(*paired(rng, trunk=trunk, labels=trunk > 0)) for _ in range(TIMES)]
    covered = sum(one.low <= 1 <= one.high for one in found)
    assert holds(covered, TIMES)
    assert stats.kstest([one.p for one in found], "uniform").pvalue > 0.01
    assert stats.kstest([one.trend_p for one in found], "uniform").pvalue > 0.01


def test_a_constant_worth_is_recovered():
    rng = np.random.default_rng(1)
    found = [compare(*paired(rng, 1.2)) for _ in range(TIMES // 2)]
    assert holds(sum(one.low <= 1.2 <= one.high for one in found), len(found))
    assert np.median([one.high / one.low for one in found]) < 1.05
    assert all(one.p < 1e-3 for one in found)
    assert holds(sum(one.trend_interval[0] <= 0 <= one.trend_interval[1] for one in found), len(found))


def test_a_worth_that_vanishes_with_scale_has_that_trend():
    low, high = np.log(6 * 3e5**2 * 5), np.log(6 * 1.2e7**2 * 160)
    trend = -np.log(1.3) / (high - low)
    base, idea = paired(np.random.default_rng(2), lambda flops: 1.3 * (flops / np.exp(low)) ** trend)
    found = compare(base, idea)
    assert found.trend_interval[0] < trend < found.trend_interval[1] < 0
    value, below, above = found.at(np.exp([low, high]))
    assert below[0] < 1.3 < above[0]
    assert below[1] < 1 < above[1]
    assert value[0] - value[1] == pytest.approx(0.3, abs=0.1)


def test_what_an_idea_costs_counts():
    base, idea = paired(np.random.default_rng(3), 1.0, cost=1.25)
    found = compare(base, idea)
    assert found.low < 1 < found.high
    assert (idea.loss < base.loss).mean() > 0.9


def test_pairs_take_out_the_noise_they_share():
    rng = np.random.default_rng(4)
    base, idea = paired(rng, 1.1)
    other, _ = paired(rng, 1.1)
    together, apart = compare(base, idea), compare(other, idea)
    assert together.pairs == apart.pairs == 30
    assert together.noise == pytest.approx(0.002 * 2**0.5, rel=0.35)
    assert apart.noise > 3 * together.noise
    assert np.log(apart.high / apart.low) > 2 * np.log(together.high / together.low)


def test_ladders_of_other_shapes_are_compared_by_the_law():
    rng = np.random.default_rng(5)
    base, _ = paired(rng)
    _, idea = paired(rng, 1.5, shapes=4)
    found = compare(base, idea.subset((idea.params > 4e5) & (idea.params < 1e7)))
    assert found.unpaired > 30
    assert found.low < 1.5 < found.high
    assert found.p < 0.01


def test_an_idea_that_makes_tokens_worth_more_is_worth_that_at_the_optimum():
    theta, law = TRUTH["chinchilla"], LAWS["chinchilla"]
    rng = np.random.default_rng(6)
    base, _ = paired(rng)
    loss = law.predict(theta, base.params, 1.4 * base.tokens) * base.loss / law.predict(theta, base.params, base.tokens)
    noisy = loss * np.exp(0.002 * rng.standard_normal(len(base)))
    found = compare(base, Observations(tokens=base.tokens, params=base.params, loss=noisy))
    assert found.low < 1.4 < found.high
    assert found.high / found.low < 1.25


def test_a_few_runs_of_one_shape_are_enough_for_the_plane():
    tokens = np.geomspace(1e7, 1e8, 5)
    params = np.full(5, 1e6)
    loss = 3.0 * (tokens / 1e7) ** -0.1
    rng = np.random.default_rng(7)
    base = Observations(tokens=tokens, params=params, loss=loss * np.exp(0.001 * rng.standard_normal(5)))
    idea = Observations(tokens=tokens, params=params, loss=base.loss * 1.2**-0.1)
    found = compare(base, idea)
    assert found.law == "plane"
    assert found.multiplier == pytest.approx(1.2, rel=0.03)
    assert any("one shape" in note for note in found.notes)


def test_runs_at_one_budget_have_no_trend():
    rng = np.random.default_rng(8)
    base, idea = paired(rng, 1.2)
    again = idea.subset(np.full(5, 15))
    noisy = again.loss * np.exp(0.01 * rng.standard_normal(5))
    found = compare(base, Observations(tokens=again.tokens, params=again.params, loss=noisy))
    assert found.trend is None
    assert found.scales == pytest.approx([again.flops[0]])
    assert found.low < 1.2 < found.high


def test_few_pairs_are_not_fitted_away_by_the_law():
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(20):
        base, idea = paired(rng, 1.2)
        found = compare(base, idea.subset(rng.choice(30, 5, replace=False)))
        covered += found.low < 1.2 < found.high
    assert covered >= 17


def test_many_ideas_have_their_false_discoveries_controlled():
    rng = np.random.default_rng(9)
    base, good = paired(rng, 1.2)
    noise = {f"idea {n}": compare_like(base, rng) for n in range(8)}
    found = compare_all(base, {"good": good, **noise})
    p = [one.p for one in found.values()]
    assert [one.q for one in found.values()] == pytest.approx(stats.false_discovery_control(p))
    trends = [one.trend_p for one in found.values()]
    assert [one.trend_q for one in found.values()] == pytest.approx(stats.false_discovery_control(trends))
    assert found["good"].q < 0.01
    assert sum(one.q < 0.05 for name, one in found.items() if name != "good") == 0


def compare_like(base: Observations, rng: np.random.Generator) -> Observations:
    loss = base.loss * np.exp(0.003 * rng.standard_normal(len(base)))
    return Observations(tokens=base.tokens, params=base.params, loss=loss)


def test_what_cannot_be_compared_is_said_in_one_sentence():
    base, idea = paired(np.random.default_rng(10), 1.2)
    dear = Observations(tokens=100 * idea.tokens, params=1000 * idea.params, loss=idea.loss)
    with pytest.raises(UserError, match="do not overlap"):
        compare(base, dear)
    with pytest.raises(UserError, match="at least 4 of each"):
        compare(base, thin(idea, 3))
    other = Observations(tokens=idea.tokens, params=idea.params, loss=0.4 * idea.loss)
    with pytest.raises(UserError, match="same unit"):
        compare(base, other)
    forward = Observations(tokens=idea.tokens, params=idea.params, flops=idea.flops / 3, loss=idea.loss)
    with pytest.raises(UserError, match="count compute differently"):
        compare(base, forward)
    once = Observations(tokens=base.tokens, params=6e12 / base.tokens, loss=base.loss)
    with pytest.raises(UserError, match="one compute budget"):
        compare(once, idea)
    with pytest.raises(UserError, match="they are the same runs"):
        compare(base, base)
    with pytest.raises(UserError, match="mine: the baseline has"):
        compare_all(base, {"mine": thin(idea, 2)})


def test_runs_that_tell_next_to_nothing_are_said_to():
    """A few noisy runs along one path: the law bends as it likes, and intervals stay finite."""
    theta, law = TRUTH["chinchilla"], LAWS["chinchilla"]
    x = np.geomspace(3e6, 3e7, 5)
    rng = np.random.default_rng(12)
    found = []
    for _ in range(12):
        noise = np.exp(0.05 * rng.standard_normal((2, 5)))
        base, idea = (
            Observations(tokens=20 * x, params=x, loss=law.predict(theta, x, 20 * x) * each) for each in noise
        )
        found.append(compare(base, idea))
    assert all(1e-3 <= one.low <= one.multiplier <= one.high <= 1e3 for one in found)
    vague = [one for one in found if one.high > 10 * one.low]
    assert vague
    assert all(any("next to nothing" in note for note in one.notes) for one in vague)
