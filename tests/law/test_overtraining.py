from __future__ import annotations

import numpy as np
import pytest

from nachim.law import LAWS as GENERAL
from tests.law.library import LAWS, TRUTH

LAW, THETA = LAWS["overtraining"], TRUTH["overtraining"]
AS_CHINCHILLA = {
    "E": 1.51,
    "A": 141.0 * 6**-0.121,
    "B": 190.0 * 6**-0.121,
    "alpha": 0.242,
    "beta": 0.242,
}


def test_it_is_chinchilla_with_one_exponent():
    x, tokens = 10 ** np.random.default_rng(0).uniform((7, 9), (10, 12), (20, 2)).T
    assert LAW.predict(THETA, x, tokens) == pytest.approx(GENERAL["chinchilla"].predict(AS_CHINCHILLA, x, tokens))


def test_runs_of_any_multiplier_fall_in_parallel():
    """arXiv 2403.08540 sec. 2: at 20 and at 640 tokens a parameter, loss - E falls with C by the same power."""
    flops = np.array([1e18, 1e22])
    for multiplier in (20, 640):
        x = np.sqrt(flops / 6 / multiplier)
        above = LAW.predict(THETA, x, multiplier * x) - THETA["E"]
        assert np.log(above[0] / above[1]) / np.log(1e4) == pytest.approx(THETA["eta"])


def test_its_optimum_is_chinchillas():
    ours, theirs = (law.allocation(theta, 1e21, "params") for law, theta in _pairs())
    assert ours == pytest.approx(theirs)
    assert [float(each) for each in LAW.exponents(THETA)] == [0.5, 0.5]


def _pairs():
    return (LAW, THETA), (GENERAL["chinchilla"], AS_CHINCHILLA)
