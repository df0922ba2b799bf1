from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from nachim.law import LAWS, Observations, fit, isoflop, read, study
from nachim.law.isoflop import akima, bias_of, estimates
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


class TheirDraws:
    """The random numbers behind published_fits.csv: numpy's seed 42 for each file, spent on scales, then on tokens."""

    def __init__(self) -> None:
        self.state = np.random.RandomState(42)

    def standard_normal(self, size: tuple[int, int]) -> np.ndarray:
        drawn, _ = self.state.standard_normal(size), self.state.standard_normal(size)
        return drawn


def porian(shared_data: Path) -> tuple[Observations, dict[str, list[dict[str, str]]]]:
    """The published runs, and rows of published fits by file."""
    runs = read(shared_data / "scaling" / "porian" / "observations.csv")
    files: dict[str, list[dict[str, str]]] = {}
    with open(shared_data / "scaling" / "porian" / "published_fits.csv") as file:
        for row in csv.DictReader(file):
            row["name"] = "/".join(
                row[k] for k in ("dataset", "hparams", "warmup", "decay", "param_count", "loss_kind")
            )
            files.setdefault(row["file"], []).append(row)
    return runs, files


def noise_of(name: str) -> float:
    """Run noise in nats, github formll/resolving-scaling-law-discrepancies, configs.py (at losses below e^3)."""
    return 0.01 if name.startswith("owt2") else 0.002


def test_published_exponents_are_reproduced(shared_data):
    """arXiv 2406.19146: all 15, unweighted and weighted, to 1e-6 with the paper's own draws."""
    runs, files = porian(shared_data)
    off = []
    for rows in files.values():
        draws = {fit: TheirDraws() for fit in ("basic", "weighted")}
        for row in rows:
            one = runs.subset(runs.group == row["name"])
            found = akima(one, "params", noise_of(row["name"]), draws[row["fit"]], weighted=row["fit"] == "weighted")
            off.append(abs(found.exponent - float(row["n_exponent"])))
    assert len(off) == 30
    assert max(off) < 1e-6


def test_other_draws_and_parabolas_approach_published_exponents(shared_data):
    """Other draws move the published exponents by up to 0.003: their minima are medians on a grid."""
    runs, files = porian(shared_data)
    by_spline, by_parabola = [], []
    for row in (row for rows in files.values() for row in rows if row["fit"] == "basic"):
        one, published = runs.subset(runs.group == row["name"]), float(row["n_exponent"])
        rng = np.random.default_rng(0)
        found = akima(one, "params", noise_of(row["name"]), rng, weighted=False)
        assert found.exponent_interval90[0] < published < found.exponent_interval90[1]
        by_spline.append(abs(found.exponent - published))
        by_parabola.append(abs(isoflop(one, "params", draws=10).exponent - published))
    assert max(by_spline) < 0.003
    assert np.mean(by_spline) < 0.001
    assert max(by_parabola) < 0.07
    assert np.mean(by_parabola) < 0.02


def test_splines_give_back_a_known_optimum():
    found = akima(symmetric(), "params", 0.003, np.random.default_rng(0))
    assert found.exponent == pytest.approx(0.5, abs=0.003)
    assert found.exponent_interval90[0] < 0.5 < found.exponent_interval90[1]
    assert found.minima[0].loss == pytest.approx(3.0, rel=1e-3)
    low_half = symmetric().params < 0.095 * symmetric().flops ** 0.5
    with pytest.raises(UserError, match="0 budgets have a minimum inside"):
        akima(symmetric().subset(low_half), "params", 0.003, np.random.default_rng(0))


SURFACES = {
    "symmetric": {"E": 1.69, "A": 400.0, "B": 400.0, "alpha": 0.31, "beta": 0.31},
    "chinchilla": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "asymmetric": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.465, "beta": 0.155},
}
"""The three surfaces of arXiv 2603.22339, section 4."""
LAW = LAWS["chinchilla"]


def grid(theta: dict[str, float], width: float, offset: float, drift: float) -> Observations:
    """That paper's design: 15 scales within a factor `width` of the optimum at 5 budgets, off by `offset` to
    `offset`·`drift`; no noise."""
    budget = np.geomspace(1e17, 1e21, 5)
    centre = LAW.allocation(theta, budget, "params")[0] * offset * drift ** np.linspace(0, 1, 5)
    x, flops = (centre[:, None] * np.geomspace(1 / width, width, 15)).ravel(), np.repeat(budget, 15)
    return Observations(flops / 6 / x, LAW.predict(theta, x, flops / 6 / x), params=x, flops=flops)


@pytest.mark.parametrize("name", SURFACES)
def test_the_warning_appears_exactly_where_parabolas_are_biased(name):
    """36 designs less those without a minimum; what is measured against the truth decides, what is warned follows."""
    theta, warned = SURFACES[name], []
    exponent = theta["beta"] / (theta["alpha"] + theta["beta"])
    for width in (2, 4, 8, 16):
        for offset, drift in ((1, 1), (3, 1), (1, 3), (1, 1 / 3)):
            if width == 2 and offset == 3:
                continue
            obs = grid(theta, width, offset, drift)
            read, fitted = isoflop(obs, "params", draws=2), fit(obs, LAW, "params")
            miss = read.exponent - exponent
            bias = bias_of("parabola", obs, fitted)
            top = float(read.x_opt(bias.flops) / LAW.allocation(theta, bias.flops, "params")[0] - 1)
            assert bias.exponent == pytest.approx(miss, abs=1e-6)
            assert bias.x == pytest.approx(top, abs=1e-5)
            assert bias.matters == (abs(miss) > 0.005 or abs(top) > 0.05)
            assert fitted.exponents["model"] == pytest.approx(exponent, abs=1e-9)
            warned.append(bias.matters)
    assert sum(warned) == {"symmetric": 0, "chinchilla": 0, "asymmetric": 12}[name]


def test_the_bias_is_the_published_one():
    """arXiv 2603.22339, section 4.2: grids of ±2x put the tokens 0.3 % and 1.7 % low: the scale as much high."""
    for name, percent in (("chinchilla", 0.3), ("asymmetric", 1.7)):
        obs = grid(SURFACES[name], 2, 1, 1)
        bias = bias_of("parabola", obs, fit(obs, LAW, "params"))
        assert 100 * bias.x == pytest.approx(percent, abs=0.05)
        assert (bias.width, bias.offset, bias.drift) == pytest.approx((4, 1, 1))
    two = obs.subset(obs.flops < 2e18)
    assert bias_of("parabola", two, fit(two, LAW, "params")) is None


def test_three_estimators_stand_side_by_side():
    obs = grid(SURFACES["asymmetric"], 8, 1, 1)
    wobble = np.exp(1e-3 * np.random.default_rng(0).standard_normal(len(obs)))
    obs = Observations(obs.tokens, obs.loss * wobble, params=obs.params, flops=obs.flops)
    parabola, spline, surface = estimates(obs, study(obs, law="chinchilla", draws=40))
    assert [one.method for one in (parabola, spline, surface)] == ["parabola", "akima", "surface"]
    assert [one.budgets for one in (parabola, spline, surface)] == [5, 5, 5]
    assert parabola.bias.matters
    assert "6 % off at 1e+21 FLOPs" in str(parabola.bias) or "7 % off at 1e+21 FLOPs" in str(parabola.bias)
    assert not spline.bias.matters
    assert surface.bias is None
    assert (spline.noise, surface.noise) == pytest.approx((1e-3, 1e-3), rel=0.3)
    assert 1e-3 < parabola.noise < 2e-3, "the runs' own scatter, and what no parabola follows"
    assert surface.exponent == pytest.approx(0.25, abs=0.002)
    assert surface.interval90[1] - surface.interval90[0] < 0.01
    few = obs.subset(obs.flops > 5e19)
    assert estimates(few, study(few, draws=40))[0].reason.startswith("2 budgets have a minimum")


def test_a_surface_of_known_optimum_is_read_close_to_it():
    law = LAWS["chinchilla"]
    theta = {"E": 1.69, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3}
    budget = np.repeat(np.geomspace(1e17, 1e20, 6), 9)
    x = law.allocation(theta, budget, "params")[0] * np.tile(np.geomspace(0.3, 3, 9), 6)
    obs = Observations(budget / 6 / x, law.predict(theta, x, budget / 6 / x), params=x, flops=budget)
    assert isoflop(obs, "params").exponent == pytest.approx(0.5, abs=0.002)
