from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from nachim.law import Observations, fit
from nachim.spec.error import UserError
from tests.law.library import LAWS, TRUTH, runs


def test_scipy_finds_the_same_power_law():
    obs = runs("power-tokens", 0.001)
    found = fit(obs, LAWS["power-tokens"], "params")
    start = list(TRUTH["power-tokens"].values())
    theirs, _ = curve_fit(lambda d, e, b, beta: np.log(e + b * d**-beta), obs.tokens, np.log(obs.loss), start)
    assert found.predict(1e12) == pytest.approx(theirs[0] + theirs[1] * 1e12 ** -theirs[2], rel=2e-3)


def test_one_axis_splits_no_compute():
    found = fit(runs("power-flops"), LAWS["power-flops"], "params")
    with pytest.raises(UserError, match="reads flops: it splits no compute"):
        found.allocation(1e20)
    assert found.predict(flops=1e20) == pytest.approx(1.69 + 1000 * 1e20**-0.155)


def test_two_points_on_the_axis_are_refused():
    tokens = np.tile([1e9, 1e10], 4)
    obs = Observations(tokens, 2 + tokens**-0.1, params=np.full(8, 1e8))
    with pytest.raises(UserError, match="2 distinct token counts: at least 3"):
        fit(obs, LAWS["power-tokens"], "params")
