from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize

from nachim.law import LAWS, Observations, concat, fit
from nachim.law.fit import sample_of
from nachim.law.forms import Law
from nachim.law.solve import huber, minimise
from nachim.spec.error import UserError
from tests.law.ladders import TRUTH, ladder, scattered


@pytest.mark.parametrize("name", LAWS)
def test_noise_free_runs_give_back_the_truth(name):
    found = fit(scattered(name), LAWS[name], "params")
    for key, value in TRUTH[name].items():
        assert found.coefficients[key] == pytest.approx(value, rel=1e-9)
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


def test_squared_loss_is_least_squares():
    """Against scipy's Levenberg-Marquardt on the law stated anew."""
    law, obs = LAWS["chinchilla"], ladder(LAWS["chinchilla"], np.random.default_rng(4), 0.01)
    found = fit(obs, law, "params", loss="squared")

    def residuals(log_theta: np.ndarray) -> np.ndarray:
        theta = dict(zip(law.coefficient_names, np.exp(log_theta), strict=True))
        return np.log(obs.loss) - np.log(law.predict(theta, obs.params, obs.tokens))

    other = least_squares(residuals, np.log(list(TRUTH["chinchilla"].values())), method="lm", xtol=1e-14, ftol=1e-14)
    assert found.objective == pytest.approx(other.cost, rel=1e-9)
    assert list(found.coefficients.values()) == pytest.approx(np.exp(other.x), rel=1e-4)
    assert found.certificate.loss == "squared"
    assert fit(obs, law, "params", delta=1e3).objective == pytest.approx(other.cost, rel=1e-9)


def test_a_narrow_huber_is_nearly_the_sum_of_absolute_residuals():
    law, obs = LAWS["chinchilla"], ladder(LAWS["chinchilla"], np.random.default_rng(5), 0.01)
    narrow, usual = fit(obs, law, "params", delta=1e-6), fit(obs, law, "params")
    assert np.abs(narrow.residuals).sum() <= np.abs(usual.residuals).sum()
    assert narrow.objective == pytest.approx(1e-6 * np.abs(narrow.residuals).sum(), rel=1e-2)


@pytest.mark.parametrize(("said", "asked"), [("did you mean 'huber'", {"loss": "hubr"}), ("above 0", {"delta": 0.0})])
def test_a_loss_that_is_none_is_refused(said, asked):
    with pytest.raises(UserError, match=said):
        fit(scattered("chinchilla"), LAWS["chinchilla"], "params", **asked)


class Wave(Law):
    """exp(cos(E·log x) / 10): the error of a wave by its frequency has many minima."""

    name, formula, source, inputs, unit_of = "wave", "exp(cos(E·log x) / 10)", "made up", ("x",), {"x": 1.0}
    coefficient_names = ("E",)
    low, high = np.array([0.1]), np.array([12.0])

    def value(self, z, *logs):
        return np.cos(z * logs[0]) / 10

    def expand(self, z, *logs):
        return self.value(z, *logs), (-np.sin(z * logs[0]) * logs[0] / 10)[..., None, :], None

    def coefficients(self, z, units):
        return {"E": z[..., 0]}

    def starts(self, sample, weight, count):
        return np.linspace(0.5, 11.5, count)[:, None]

    def loss(self, theta, *columns):
        return np.exp(np.cos(theta["E"] * np.log(columns[0])) / 10)


def test_the_certificate_counts_basins_and_their_distance():
    """Against all minima on a fine grid of the one coefficient."""
    law, logs = Wave(), np.linspace(0.1, 3, 40)
    noise = 0.01 * np.random.default_rng(0).standard_normal(40)
    obs = Observations(np.ones(40), np.exp(np.cos(4 * logs) / 10 + noise), params=np.exp(logs))
    found = fit(obs, law, "params", loss="squared")
    grid = np.linspace(0.1, 12, 20001)
    target = np.log(obs.loss) - np.log(obs.loss).mean()
    costs = 0.5 * ((np.cos(grid[:, None] * logs) / 10 - target) ** 2).sum(axis=1)
    inner = (costs[1:-1] < costs[:-2]) & (costs[1:-1] < costs[2:])
    minima = np.sort(costs[1:-1][inner])
    basins = found.certificate.basins
    assert basins[0].objective == pytest.approx(minima[0], rel=1e-4)
    assert len(basins) > 3 and basins[0].apart == 0
    inside = [basin for basin in basins if "E" not in found.at_bound]
    assert all(np.abs(minima / basin.objective - 1).min() < 1e-4 for basin in inside if basin.objective < costs[0])
    assert all(basin.apart > 1 for basin in basins[1:])
    assert sum(basin.starts for basin in basins) + found.certificate.unfinished == found.starts
    assert f"{len(basins)} minima" in found.certificate.line()


def test_the_certificate_of_a_sound_fit_has_no_doubts():
    obs = scattered("chinchilla")
    noisy = Observations(obs.tokens, obs.loss * np.exp(0.01 * np.random.default_rng(0).normal(size=60)), obs.params)
    found = fit(noisy, LAWS["chinchilla"], "params").certificate
    assert found.doubts() == []
    assert len(found.basins) == 1 and found.at_best == found.starts and found.unfinished == 0
    assert found.gradient < 1e-12
    assert found.left_out == ()
    assert "one minimum" in found.line()


def test_weightless_rows_are_named_in_the_certificate():
    obs = scattered("chinchilla")
    weight = np.where(np.isin(np.arange(60), (3, 7)), 0.0, 1.0)
    found = fit(Observations(obs.tokens, obs.loss, obs.params, weight=weight), LAWS["chinchilla"], "params")
    assert found.certificate.left_out == (4, 8)


def test_what_the_runs_do_not_fix_is_said_with_what_would():
    """Tokens over a range of 1.04: B and beta cannot be told from the floor."""
    rng = np.random.default_rng(0)
    x, tokens = 10 ** rng.uniform(6, 10, 60), 1e10 * rng.choice([1.0, 1.02, 1.04], 60)
    loss = LAWS["chinchilla"].predict(TRUTH["chinchilla"], x, tokens) * np.exp(0.01 * rng.standard_normal(60))
    doubts = " ".join(fit(Observations(tokens, loss, params=x), LAWS["chinchilla"], "params").certificate.doubts())
    assert "these runs do not determine" in doubts
    assert "runs over a wider range of tokens, now 1x, would" in doubts
