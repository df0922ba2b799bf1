"""What is known of a law before any run: it decides where runs say little, and nothing where they say much."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

from nachim.law import LAWS, fit, study
from nachim.law.coupled import KNOWN
from nachim.law.fit import sample_of
from nachim.law.forms import Prior
from tests.law.ladders import TRUTH, ladder, scattered

NOISE = 0.01


def test_its_cost_and_slope_are_those_of_a_normal_density() -> None:
    prior = Prior(np.array([0.5, 0.0, -1.0]), np.array([0.2, np.inf, 3.0]), unit=0.25)
    z = np.array([[0.9, 7.0, 2.0], [0.5, -3.0, -1.0]])
    known = [0, 2]
    density = norm.logpdf(z[:, known], prior.mean[known], prior.sd[known]).sum(axis=1)
    highest = norm.logpdf(0.0, 0.0, prior.sd[known]).sum()
    assert prior.cost(z) == pytest.approx(0.25 * (highest - density))
    for column in range(3):
        ahead, behind = z.copy(), z.copy()
        ahead[:, column] += 1e-6
        behind[:, column] -= 1e-6
        assert prior.slope(z)[:, column] == pytest.approx((prior.cost(ahead) - prior.cost(behind)) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("name", LAWS)
def test_a_fit_under_it_is_the_lowest_of_misfit_and_prior(name: str) -> None:
    """Nelder-Mead on the two written out, from the fit and from the prior's means."""
    law = LAWS[name].informed(NOISE)
    obs = ladder(LAWS[name], np.random.default_rng(4), NOISE)
    found, sample = fit(obs, law, "params"), sample_of(obs, "params", law)
    mean, sd = KNOWN[:, : law.size]

    def objective(z: np.ndarray) -> float:
        size = np.abs(law.value(np.clip(z, law.low, law.high), *sample.inputs) - sample.log_loss)
        delta = 1.345 * NOISE
        misfit = np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum()
        return float(misfit + NOISE**2 * (((z - mean) / sd) ** 2).sum() / 2)

    assert objective(found.point) == pytest.approx(found.objective, rel=1e-9)
    for start in (found.point, np.where(np.isinf(sd), found.point, mean)):
        other = minimize(objective, start, method="Nelder-Mead", options={"maxiter": 6000, "xatol": 1e-9}).fun
        assert other >= found.objective * (1 - 1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_it_decides_nothing_where_runs_have_no_noise(name: str) -> None:
    obs = scattered(name)
    plain, informed = fit(obs, LAWS[name], "params"), fit(obs, LAWS[name].informed(1e-5), "params")
    assert informed.predict(1e10, 1e12) == pytest.approx(plain.predict(1e10, 1e12), rel=1e-3)


def test_few_noisy_runs_forecast_better_with_it_and_their_interval_holds() -> None:
    """Ladders of 30 runs with 1 % of noise, read with and without a measured noise, ten times beyond their top."""
    law = LAWS["coupled"]
    errors: dict[bool, list[float]] = {True: [], False: []}
    inside = 0
    for seed in range(8):
        obs = ladder(law, np.random.default_rng(seed), NOISE)
        top = int(np.argmax(obs.flops))
        x, tokens = obs.params[top] * 10**0.5, obs.tokens[top] * 10**0.5
        truth = float(law.predict(TRUTH["coupled"], x, tokens))
        for known in (True, False):
            point, low, high = study(obs, draws=40, noise=NOISE if known else None).predict(x, tokens)
            errors[known].append(abs(float(np.log(point / truth))))
            inside += known and bool(low <= truth <= high)
    assert np.mean(errors[True]) < np.mean(errors[False])
    assert inside >= 7
