"""The coupled law on every published set that lies beside the repository."""

from __future__ import annotations

import time

import numpy as np
import pytest

from nachim.law import LAWS, Observations, fit, read, study

LARGEST_ERROR = {"porian": 5.0, "gadre": 2.0, "gemstones": 1.0, "muennighoff": 5.0, "steplaw": 2.0}


@pytest.mark.parametrize("name", LARGEST_ERROR)
def test_every_published_set_is_fitted(shared_data, name):
    runs = read(shared_data / "scaling" / name / "observations.csv")
    groups = [runs]
    if runs.group is not None and name in ("porian", "gadre"):
        groups = [runs.subset(runs.group == group) for group in np.unique(runs.group)]
    for group in groups:
        found = fit(group, LAWS["coupled"], "params")
        assert np.isfinite(list(found.coefficients.values())).all()
        assert found.mape < LARGEST_ERROR[name]
        assert 0.2 < found.exponents["model"] < 0.9
        assert found.objective <= fit(group, LAWS["chinchilla"], "params").objective


def test_dear_runs_are_forecast_by_cheap_ones(shared_data):
    """Porian's tuned runs within 0.15 nat of their budget's best: the top budgets, to 1 %."""
    runs = read(shared_data / "scaling" / "porian" / "observations.csv")
    assert runs.group is not None
    obs = runs.subset(runs.group == "rw/tuned/short/const/standard/val")
    best = np.array([obs.loss[np.isclose(obs.flops, flops, rtol=0.1)].min() for flops in obs.flops])
    obs = obs.subset(obs.loss < best + 0.15)
    cheap = obs.flops <= np.quantile(obs.flops, 0.8)
    point, low, high = study(obs.subset(cheap)).predict(obs.params[~cheap], obs.tokens[~cheap])
    assert np.mean(np.abs(point / obs.loss[~cheap] - 1)) < 0.01
    assert np.mean((low <= obs.loss[~cheap]) & (obs.loss[~cheap] <= high)) >= 0.75


def test_245_runs_are_fitted_in_half_a_second(shared_data):
    runs = read(shared_data / "scaling" / "porian" / "observations.csv")
    obs = Observations(runs.tokens[:245], runs.loss[:245], params=runs.params[:245])
    started = time.process_time()
    fit(obs, LAWS["coupled"], "params")
    assert time.process_time() - started < 0.5
