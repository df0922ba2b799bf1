from __future__ import annotations

import numpy as np
import pytest

from nachim.law import LAWS as GENERAL
from nachim.law import Observations, fit
from tests.law.library import LAWS, TRUTH, runs

LAW = LAWS["farseer"]


def test_one_exponent_and_one_data_size_for_all_scales_leave_chinchillas_data_term():
    """With A = B = 0 the data term is e^Q·D^-e^E; with q near 0 the floor is a plain power of x."""
    theta = TRUTH["farseer"] | {"A": 0.0, "B": 0.0, "Q": np.log(410.7), "E": np.log(0.28)}
    floor = LAW.predict(theta, 1e9, 1e300)
    assert LAW.predict(theta, 1e9, 1e11) - floor == pytest.approx(410.7 * 1e11**-0.28, rel=1e-9)
    theta |= {"s": -0.34 / 1e-7, "q": 1e-7, "S": 0.34 / 1e-7 + np.log(400.0)}
    assert LAW.predict(theta, 1e9, 1e300) == pytest.approx(400 * 1e9**-0.34, rel=1e-4)


def test_a_plain_power_for_the_floor_is_fitted_without_strain():
    """(x^q - 1)/q is log x at q = 0: coefficients run away there, forecasts and slopes do not."""
    rng = np.random.default_rng(0)
    x, tokens = 10 ** rng.uniform(7, 10, 60), 10 ** rng.uniform(9, 12, 60)
    loss = 8 * x**-0.06 + 400 * tokens**-0.3
    found = fit(Observations(tokens, loss, params=x), LAW, "params")
    assert np.abs(found.residuals).max() < 1e-9
    assert found.predict(1e11, 1e13) == pytest.approx(8 * 1e11**-0.06 + 400 * 1e13**-0.3, rel=1e-6)


def test_units_of_scale_and_loss_only_rescale():
    obs = runs("farseer", 0.003)
    plain = fit(obs, LAW, "params")
    other = fit(Observations(obs.tokens, obs.loss / 3, flops_per_token=6 * obs.params), LAW, "flops_per_token")
    assert other.predict(6e9, 1e11) == pytest.approx(plain.predict(1e9, 1e11) / 3, rel=1e-5)


def test_it_beats_chinchilla_on_runs_whose_data_exponent_moves():
    obs = runs("farseer", 0.002)
    assert fit(obs, LAW, "params").mape < 0.5 * fit(obs, GENERAL["chinchilla"], "params").mape
