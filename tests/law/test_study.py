from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nachim.law import LAWS, Observations, check_regime, concat, study
from nachim.law.interval import LARGEST_FACTOR, conformal_factor, half_width, noise_under
from nachim.law.select import budgets
from nachim.spec.error import UserError
from tests.law.ladders import TRUTH, ladder
from tests.law.library import runs

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
    assert asked.weights["chinchilla"] == pytest.approx(0.5)
    assert sum(asked.weights.values()) == pytest.approx(1)


def test_a_study_is_a_function_of_its_seed():
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.01)
    one, two, other = (study(obs, seed=seed, draws=40) for seed in (0, 0, 1))
    assert one.interval90 == two.interval90
    assert one.interval90 != other.interval90
    assert one.predict(1e8, 2e9) == two.predict(1e8, 2e9) == other.predict(1e8, 2e9)


def test_noise_that_was_measured_widens_the_interval():
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.003)
    plain, noisy = study(obs, draws=40), study(obs, draws=40, noise=0.05)
    assert noisy.noise == pytest.approx(0.05)
    x, tokens = obs.params[-1], obs.tokens[-1]
    assert np.ptp(noisy.predict(x, tokens)[1:]) > 3 * np.ptp(plain.predict(x, tokens)[1:])
    assert np.ptp(plain.predict(x, tokens, level=0.5)[1:]) < np.ptp(plain.predict(x, tokens, level=0.9)[1:])


def test_few_runs_are_read_without_rollouts_and_too_few_refused():
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.01)
    spread = obs.subset(np.arange(0, 30, 3))
    few = study(spread, draws=40)
    assert few.errors == {}
    assert few.factor == 1
    assert few.coverage is None
    assert "no rollout was possible" in few.undecided
    x = np.sqrt(10 * obs.flops.max() / 6 / 20)
    law_alone = study(spread, law="chinchilla", draws=40)
    assert np.ptp(few.predict(x, 20 * x)[1:]) > 0
    assert few.predict(x, 20 * x)[0] == law_alone.predict(x, 20 * x)[0] or few.lead != law_alone.lead
    assert few.fit.law.name == "chinchilla"
    with pytest.raises(UserError, match="cannot determine"):
        study(obs.subset(np.arange(4)))
    with pytest.raises(UserError, match="cannot determine the 6 coefficients"):
        study(obs.subset(np.array([0, 7, 14, 21, 28, 5])), law="coupled")


def test_the_conformal_factor_follows_its_rule():
    """Split conformal prediction on the scores seen, and two cuts' worth of scores of a band that holds."""
    even = np.full(2000, 1 / 2000)
    good = np.abs(np.random.default_rng(0).standard_normal(2000)) / 1.645
    assert conformal_factor(good, even) == pytest.approx(1, abs=0.05)
    assert conformal_factor(good / 10, even) == 1
    assert conformal_factor(good * 2, 1e6 * even) == pytest.approx(2 * np.quantile(good, 0.9), rel=0.01)
    assert 1.2 < conformal_factor(good * 2, even) < 1.8
    assert conformal_factor(good * 100, even) == LARGEST_FACTOR
    assert conformal_factor(np.empty(0), np.empty(0)) == 1


def test_a_mixture_holds_its_share():
    rng = np.random.default_rng(0)
    means, spreads, shares = np.array([[0.0], [1.0]]), np.array([[0.1], [0.3]]), np.array([0.7, 0.3])
    part = (rng.random(200_000) < 0.3).astype(int)
    drawn = rng.normal(means[part, 0], spreads[part, 0])
    for centre in (0.0, 0.3, 2.0):
        half = half_width(0.9, np.array([centre]), means, spreads, shares)
        assert np.mean(np.abs(drawn - centre) <= half) == pytest.approx(0.9, abs=0.003)
    assert half_width(0.9, np.zeros(1), means, spreads, np.array([1.0, 0.0])) == pytest.approx([0.16449], rel=1e-4)


def test_run_noise_is_not_that_of_outliers():
    rng = np.random.default_rng(0)
    residuals, even = 0.01 * rng.standard_normal(400), np.ones(400)
    assert noise_under(residuals, even, 5)[0] == pytest.approx(0.01, rel=0.1)
    residuals[:8] += 1.0
    assert noise_under(residuals, even, 5)[0] == pytest.approx(0.01, rel=0.2)
    assert noise_under(np.where(even > 0, residuals, 0), np.where(np.arange(400) < 200, 1e-9, 1.0), 5)[0] < 0.012
    assert noise_under(residuals, even, 5)[1] == pytest.approx(1, abs=0.01)
    assert noise_under(residuals[-8:], even[:8], 5)[1] == pytest.approx(2.353 / 1.645, rel=1e-3)


def test_a_larger_law_forecasts_large_tables_and_is_not_reported():
    """On a surface that neither closed form follows, the mean of all views is nearer than the reported law alone."""
    every = runs("farseer", 0.001)
    dear = every.flops >= np.quantile(every.flops, 0.85)
    reading, unseen = study(every.subset(~dear), draws=40), every.subset(dear)
    assert reading.fit.law.name in LAWS
    assert set(reading.fits) == set(LAWS) == set(reading.refits)
    assert reading.lead["farseer"].sum() > 0.5
    assert sum(reading.weights.values()) == pytest.approx(1)
    alone = 100 * np.mean(np.abs(reading.fit.predict(unseen.params, unseen.tokens) / unseen.loss - 1))
    assert reading.held_out(unseen).mape < 0.5 * alone
    assert "farseer" not in study(every.subset(np.flatnonzero(~dear)[:35]), draws=40).errors


def test_beyond_the_farthest_rollout_the_band_grows_with_the_square_root_of_log_reach():
    reading = study(ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.003), draws=2)
    near = dataclasses.replace(
        reading, rollouts=dataclasses.replace(reading.rollouts, flops=reading.rollouts.flops * 1e9)
    )
    tried = reading.rollouts.far.max()
    for reach in (0.5, 1.0, 2.0, 4.0):
        x = np.sqrt(reading.top * np.exp(reach * tried) / 6 / 20)
        (_, low, high), (_, plain_low, plain_high) = reading.predict(x, 20 * x), near.predict(x, 20 * x)
        stretch = np.log(high / low) / np.log(plain_high / plain_low)
        assert stretch == pytest.approx(max(1.0, reach) ** 0.5, rel=1e-6)


def test_rows_given_twice_are_no_more_runs_to_roll_out_from():
    obs = ladder(LAWS["coupled"], np.random.default_rng(0), 0.003)
    twice = study(concat([obs, obs.subset(np.arange(4, 11))]), draws=40)
    assert twice.regime is None
    cheap = obs.flops <= twice.rollouts.cuts[0]
    assert cheap.sum() >= 0.4 * len(obs)


def test_budgets_hold_runs_within_ten_percent():
    assert budgets(np.array([1e18, 1.05e18, 1e17, 1.2e18, 1.09e17])).tolist() == [1, 1, 0, 2, 0]


def test_flops_per_token_is_the_default_scale():
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.01)
    both = Observations(obs.tokens, obs.loss, params=obs.params, flops_per_token=7 * obs.params)
    assert study(both, draws=40).fit.scale == "flops_per_token"
    assert study(both, draws=40, scale="params").fit.scale == "params"
