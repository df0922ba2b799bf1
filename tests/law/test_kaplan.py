from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from tests.law.library import LAWS, TRUTH

LAW, THETA = LAWS["kaplan"], TRUTH["kaplan"]


def test_either_input_without_end_leaves_the_papers_single_laws():
    """arXiv 2001.08361 eqs. 1.1 and 1.2."""
    assert LAW.predict(THETA, 1e9, 1e40) == pytest.approx((8.8e13 / 1e9) ** 0.076, rel=1e-9)
    assert LAW.predict(THETA, 1e60, 1e10) == pytest.approx((5.4e13 / 1e10) ** 0.095, rel=1e-9)


def test_the_optimum_is_the_minimum_at_one_compute():
    x, tokens = LAW.allocation(THETA, 1e20, "params")
    found = minimize_scalar(
        lambda log: float(LAW.predict(THETA, np.exp(log), 1e20 / 6 / np.exp(log))), bracket=(15, 25), tol=1e-12
    )
    assert np.exp(found.x) == pytest.approx(float(x), rel=1e-5)
    assert 6 * x * tokens == pytest.approx(1e20)
    model, data = LAW.exponents(THETA)
    assert np.log(LAW.allocation(THETA, 1e22, "params")[0] / x) / np.log(100) == pytest.approx(float(model))
    assert model == pytest.approx(0.095 / (0.076 + 0.095)) == 1 - data
