from __future__ import annotations

import csv

import numpy as np
import pytest

from nachim.law import LAWS, Observations, isoflop, read
from nachim.spec.error import UserError


def symmetric(noise: float = 0.0) -> Observations:
    """Budgets whose log loss is a parabola in log x, its minimum at 0.1·C^0.5."""
    budget = np.repeat(np.geomspace(1e16, 1e19, 5), 11)
    away = np.tile(np.linspace(-1.0, 1.0, 11), 5)
    x = 0.1 * budget**0.5 * np.exp(away + 0.1)
    wobble = noise * np.random.default_rng(0).standard_normal(len(x))
    return Observations(
        tokens=budget / 6 / x, loss=3 * np.exp(0.03 * (away + 0.1) ** 2 + wobble), params=x, flops=budget
    )


def test_parabolas_give_back_their_minima():
    found = isoflop(symmetric(), "params")
    assert found.exponent == pytest.approx(0.5, rel=1e-9)
    assert found.x_opt(1e20) == pytest.approx(1e9, rel=1e-6)
    assert [minimum.loss for minimum in found.minima] == pytest.approx([3.0] * 5)
    assert not any(minimum.at_edge for minimum in found.minima)


def test_the_interval_holds_the_truth_and_has_a_width():
    low, high = isoflop(symmetric(noise=0.001), "params", seed=1).exponent_interval90
    assert low < 0.5 < high
    assert 0.001 < high - low < 0.1


def test_budgets_of_two_scales_have_no_parabola():
    """Several runs of each of two scales: any number of parabolas pass through them."""
    with pytest.raises(UserError, match="0 budgets have a minimum"):
        obs = symmetric(noise=1e-3)
        two = np.isin(np.arange(len(obs.loss)) % 11, (3, 7))
        again = {name: np.tile(getattr(obs, name)[two], 2) for name in ("tokens", "loss", "params", "flops")}
        isoflop(Observations(**again), "params")


def test_minima_outside_the_runs_are_left_out():
    obs = symmetric()
    low_half = obs.params < 0.095 * obs.flops**0.5
    with pytest.raises(UserError, match="0 budgets have a minimum inside"):
        isoflop(obs.subset(low_half), "params")
    one_budget_cut = isoflop(obs.subset(low_half | (obs.flops < 0.9e19)), "params")
    assert [minimum.at_edge for minimum in one_budget_cut.minima].count(True) == 1
    assert one_budget_cut.exponent == pytest.approx(0.5, rel=1e-9)


def test_published_exponents_are_approached(shared_data):
    """arXiv 2406.19146 interpolates with Akima splines; parabolas stay within 0.07, and 0.02 on average."""
    runs = read(shared_data / "scaling" / "porian" / "observations.csv")
    assert runs.group is not None
    with open(shared_data / "scaling" / "porian" / "published_fits.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["fit"] == "basic"]
    off = []
    for row in rows:
        name = "/".join(row[key] for key in ("dataset", "hparams", "warmup", "decay", "param_count", "loss_kind"))
        found = isoflop(runs.subset(runs.group == name), "params", draws=10)
        off.append(abs(found.exponent - float(row["n_exponent"])))
    assert len(off) == 15
    assert max(off) < 0.07
    assert np.mean(off) < 0.02


def test_a_surface_of_known_optimum_is_read_close_to_it():
    law = LAWS["chinchilla"]
    theta = {"E": 1.69, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3}
    budget = np.repeat(np.geomspace(1e17, 1e20, 6), 9)
    x = law.allocation(theta, budget, "params")[0] * np.tile(np.geomspace(0.3, 3, 9), 6)
    obs = Observations(budget / 6 / x, law.predict(theta, x, budget / 6 / x), params=x, flops=budget)
    assert isoflop(obs, "params").exponent == pytest.approx(0.5, abs=0.002)
