from __future__ import annotations

import numpy as np
import pytest

from nachim.law import LAWS, Observations, check_regime, study
from nachim.law.interval import LARGEST_FACTOR, band, conformal_factor
from nachim.law.select import budgets
from nachim.spec.error import UserError
from tests.law.ladders import TRUTH, ladder

NOISE = 0.007


def test_the_interval_covers_runs_of_ten_times_the_compute():
    """Nominal 90 % over 100 ladders, half from each law: 82 to 97 % must hold the noisy target."""
    hits, widths = [], []
    for seed in range(50):
        for law in LAWS.values():
            rng = np.random.default_rng(seed)
            obs = ladder(law, rng, NOISE)
            x = np.sqrt(10 * obs.flops.max() / 6 / 20)
            point, low, high = study(obs, seed=seed, draws=60).predict(x, 20 * x)
            target = law.predict(TRUTH[law.name], x, 20 * x) * np.exp(NOISE * rng.standard_normal())
            hits.append(low <= target <= high)
            widths.append(float((high - low) / point))
    assert 0.82 <= np.mean(hits) <= 0.97, f"coverage {np.mean(hits):.2f}"
    assert np.median(widths) < 0.1, f"median width {np.median(widths):.3f}"


def test_a_change_of_regime_is_found_and_refused():
    """A fall of 15 to 22 % from 3x below the top budget, under 1 % noise: at least 18 of 20."""
    found, sizes = [], []
    for seed in range(20):
        rng = np.random.default_rng(2000 + seed)
        law = LAWS["chinchilla" if seed % 2 else "coupled"]
        obs = ladder(law, rng, 0.01, fall=rng.uniform(0.15, 0.22))
        change = study(obs, seed=seed, draws=40).regime
        if change and change.percent < 0:
            found.append(change.flops / obs.flops.max())
            sizes.append(change.percent)
            with pytest.raises(UserError, match="falls below"):
                check_regime(change, 10 * obs.flops.max())
            check_regime(change, change.flops / 2)
    assert len(found) >= 18
    assert 0.15 < np.median(found) < 0.6
    assert -22 < np.median(sizes) < -15


def test_smooth_runs_show_no_change_of_regime():
    """1 % noise and no change: fewer than 5 % of 60 ladders may be flagged."""
    flagged = 0
    for seed in range(60):
        law = LAWS["chinchilla" if seed % 2 else "coupled"]
        obs = ladder(law, np.random.default_rng(1000 + seed), 0.01)
        flagged += study(obs, seed=seed, draws=40).regime is not None
    assert flagged < 3
    check_regime(None, 1e30)


def test_a_study_tells_the_truth_of_clean_runs():
    law = LAWS["coupled"]
    reading = study(ladder(law, np.random.default_rng(0), 1e-5), seed=1)
    assert reading.fit.law.name == "coupled"
    assert reading.errors["coupled"] < reading.errors["chinchilla"]
    assert reading.weights["coupled"] > 0.99
    assert reading.coefficients["beta"] == pytest.approx(TRUTH["coupled"]["beta"], rel=0.01)
    low, high = reading.interval90["alpha"]
    assert low <= reading.coefficients["alpha"] <= high
    best = reading.allocation(1e18)
    truth = law.allocation(TRUTH["coupled"], 1e18, "params")
    assert best.x == pytest.approx(float(truth[0]), rel=0.01)
    assert best.x_interval[0] <= best.x <= best.x_interval[1]
    assert best.tokens_interval[0] <= best.tokens <= best.tokens_interval[1]
    low, high = reading.exponents_interval90["model"]
    assert low <= reading.exponents["model"] <= high
    with pytest.raises(UserError, match="positive number"):
        reading.allocation(-1)
    with pytest.raises(UserError, match="positive model scale"):
        reading.predict(0, 1e9)


def test_noise_free_runs_show_no_change_of_regime():
    for law in LAWS.values():
        assert study(ladder(law, np.random.default_rng(0), 0.0), draws=40).regime is None


def test_a_law_asked_for_by_name_keeps_half_of_the_weight():
    obs = ladder(LAWS["coupled"], np.random.default_rng(0), 0.002)
    asked = study(obs, law="chinchilla", draws=40)
    assert asked.fit.law.name == "chinchilla"
    assert asked.errors["chinchilla"] > asked.errors["coupled"]
    assert asked.weights["chinchilla"] == 0.5
    assert sum(asked.weights.values()) == pytest.approx(1)


def test_a_study_is_a_function_of_its_seed():
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.01)
    one, two, other = (study(obs, seed=seed, draws=40).predict(1e8, 2e9) for seed in (0, 0, 1))
    assert one == two
    assert one[0] == other[0]
    assert one[1] != other[1]


def test_noise_that_was_measured_widens_the_interval():
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.003)
    plain, noisy = study(obs, draws=40), study(obs, draws=40, noise=0.05)
    assert noisy.noise == 0.05
    x, tokens = obs.params[-1], obs.tokens[-1]
    assert np.ptp(noisy.predict(x, tokens)[1:]) > 3 * np.ptp(plain.predict(x, tokens)[1:])
    assert np.ptp(plain.predict(x, tokens, level=0.5)[1:]) < np.ptp(plain.predict(x, tokens, level=0.9)[1:])


def test_few_runs_are_read_without_rollouts_and_too_few_refused():
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.01)
    spread = obs.subset(np.arange(0, 30, 3))
    few = study(spread, draws=40)
    assert few.errors == {}
    assert few.factor == 1
    assert few.fit.law.name == "chinchilla"
    with pytest.raises(UserError, match="cannot determine"):
        study(obs.subset(np.arange(4)))
    with pytest.raises(UserError, match="cannot determine the 6 coefficients"):
        study(obs.subset(np.array([0, 7, 14, 21, 28, 5])), law="coupled")


def test_the_conformal_factor_follows_its_rule():
    scores = np.linspace(0.1, 2.0, 20)
    even = np.ones(20)
    assert conformal_factor(scores, even) == pytest.approx(scores[18])
    assert conformal_factor(scores, np.where(scores < 1.5, even, 0)) == pytest.approx(scores[scores < 1.5][-1])
    assert conformal_factor(scores / 10, even) == 1
    assert conformal_factor(scores * 10, even) == LARGEST_FACTOR
    assert conformal_factor(np.empty(0), np.empty(0)) == 1


def test_a_forecast_outside_the_mixture_keeps_its_run_noise():
    draws = np.random.default_rng(0).standard_normal((4000, 1))
    inside = band(draws, np.zeros(1), 0.9, noise=0.1)
    assert np.concatenate(inside) == pytest.approx([1.645, 1.645], rel=0.05)
    below, above = band(draws, np.full(1, -5.0), 0.9, noise=0.1)
    assert below == pytest.approx([0.1645], rel=1e-3)
    assert above == pytest.approx([6.645], rel=0.02)


def test_budgets_hold_runs_within_ten_percent():
    assert budgets(np.array([1e18, 1.05e18, 1e17, 1.2e18, 1.09e17])).tolist() == [1, 1, 0, 2, 0]


def test_flops_per_token_is_the_default_scale():
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.01)
    both = Observations(obs.tokens, obs.loss, params=obs.params, flops_per_token=7 * obs.params)
    assert study(both, draws=40).fit.scale == "flops_per_token"
    assert study(both, draws=40, scale="params").fit.scale == "params"
