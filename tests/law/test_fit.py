from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from nachim.law import LAWS, Observations, concat, fit
from nachim.law.fit import sample_of
from nachim.law.solve import huber, minimise
from nachim.spec.error import UserError
from tests.law.ladders import TRUTH, ladder, scattered


@pytest.mark.parametrize("name", LAWS)
def test_noise_free_runs_give_back_the_truth(name):
    found = fit(scattered(name), LAWS[name], "params")
    for key, value in TRUTH[name].items():
        assert found.coefficients[key] == pytest.approx(value, rel=1e-8)
    assert found.starts_at_best >= found.starts // 2
    assert found.objective < 1e-25
    assert found.at_bound == ()


@pytest.mark.parametrize("name", LAWS)
def test_no_other_optimiser_finds_a_lower_objective(name):
    """Nelder-Mead and BFGS on the objective stated anew, started at the fit and at the truth."""
    law, obs = LAWS[name], ladder(LAWS[name], np.random.default_rng(3), 0.01)
    found = fit(obs, law, "params")

    def objective(log_theta: np.ndarray) -> float:
        theta = dict(zip(law.coefficient_names, np.exp(log_theta), strict=True))
        size = np.abs(np.log(obs.loss) - np.log(law.predict(theta, obs.params, obs.tokens)))
        return float(np.where(size < 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum())

    at_fit = np.log([found.coefficients[key] for key in law.coefficient_names])
    assert objective(at_fit) == pytest.approx(found.objective, rel=1e-9)
    for start in (at_fit, np.log(list(TRUTH[name].values()))):
        for method in ("Nelder-Mead", "BFGS"):
            other = minimize(objective, start, method=method, options={"maxiter": 4000}).fun
            assert other >= found.objective * (1 - 1e-7)


def test_huber_is_quadratic_inside_and_linear_outside():
    assert huber(np.array([5e-4, -2e-3])) == pytest.approx([1.25e-7, 1e-3 * 1.5e-3])


def test_weights_count_rows():
    law, obs = LAWS["chinchilla"], ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.01)
    twice = fit(concat([obs, obs.subset(np.arange(5))]), law, "params")
    weight = np.where(np.arange(30) < 5, 2.0, 1.0)
    heavy = Observations(obs.tokens, obs.loss, params=obs.params, weight=weight)
    weighted = fit(heavy, law, "params")
    assert weighted.objective == pytest.approx(twice.objective, rel=1e-9)
    assert weighted.coefficients == pytest.approx(twice.coefficients, rel=1e-5)
    assert weighted.n == 30
    out = Observations(obs.tokens, obs.loss * np.where(weight > 1, 9, 1), params=obs.params, weight=2 - weight)
    assert fit(out, law, "params").coefficients == pytest.approx(
        fit(obs.subset(weight == 1), law, "params").coefficients, rel=1e-4
    )


def test_units_of_scale_and_loss_only_rescale():
    law, obs = LAWS["coupled"], ladder(LAWS["coupled"], np.random.default_rng(1), 0.005)
    plain = fit(obs, law, "params")
    other = fit(Observations(obs.tokens, obs.loss / 3, flops_per_token=6 * obs.params), law, "flops_per_token")
    assert other.exponents == pytest.approx(plain.exponents, rel=1e-6)
    assert other.predict(6e9, 1e11) == pytest.approx(plain.predict(1e9, 1e11) / 3, rel=1e-6)
    assert other.allocation(1e20)[1] == pytest.approx(plain.allocation(1e20)[1], rel=1e-5)


def test_a_batch_of_fits_is_the_fits():
    law, obs = LAWS["coupled"], ladder(LAWS["coupled"], np.random.default_rng(2), 0.01)
    sample, found = sample_of(obs, "params"), fit(obs, law, "params")
    start = found.point + 0.02 * np.random.default_rng(0).standard_normal((4, law.size))
    target, weight = np.tile(sample.log_loss, (4, 1)), np.ones((4, 30))
    points, costs = minimise(law, sample.inputs, target, weight, start, steps=60)
    assert costs == pytest.approx(np.full(4, found.objective), rel=1e-9)
    assert points == pytest.approx(np.tile(found.point, (4, 1)), abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (slice(0, 6), "6 runs cannot determine"),
        (slice(0, 12), "2 distinct model scales"),
        (slice(0, 30, 6), "5 runs"),
    ],
)
def test_too_little_says_what_would_be_enough(rows, said):
    obs = ladder(LAWS["coupled"], np.random.default_rng(0), 0.01)
    with pytest.raises(UserError, match=said):
        fit(obs.subset(np.arange(30)[rows]), LAWS["coupled"], "params")


def test_one_budget_is_refused():
    x = np.geomspace(1e6, 1e8, 9)
    with pytest.raises(UserError, match="one compute budget"):
        fit(Observations(tokens=1e15 / x, loss=np.linspace(3, 4, 9), params=x), LAWS["chinchilla"], "params")
