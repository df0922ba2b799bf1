from __future__ import annotations

import numpy as np
import pytest

from nachim.law import LAWS as GENERAL
from nachim.law import Observations, fit
from nachim.law.repeat import R_STAR, effective_tokens
from nachim.spec.error import UserError
from tests.law.library import LAWS, TRUTH, runs

LAW, THETA = LAWS["constrained"], TRUTH["constrained"]
BASE = {name: THETA[name] for name in ("E", "A", "B", "alpha", "beta")}


def test_fresh_tokens_and_no_spare_parameters_leave_chinchilla():
    tokens = np.array([1e9, 3e10, 1e12])
    x = 0.03 * tokens  # less than the 0.051 that this fit calls for
    plain = GENERAL["chinchilla"].predict(BASE, x, tokens)
    assert LAW.predict(THETA, x, tokens, tokens) == pytest.approx(plain)
    assert LAW.predict(THETA, x, tokens, 5 * tokens) == pytest.approx(plain)


def test_the_optimal_scale_for_unique_tokens_is_the_papers():
    """arXiv 2305.16264 appendix A: U_N = 0.051·U_D; beyond it parameters count for less than they are."""
    unique = 1e10
    at = [float(LAW.predict(THETA, share * unique, unique, unique)) for share in (0.0509, 0.06)]
    plain = [float(GENERAL["chinchilla"].predict(BASE, share * unique, unique)) for share in (0.0509, 0.06)]
    assert at[0] == pytest.approx(plain[0], rel=1e-9)
    assert at[1] > plain[1] * (1 + 1e-6)


def test_repeated_tokens_are_worth_what_the_plan_says():
    """With R* = R_STAR and no spare parameters it is Chinchilla's law of `effective_tokens`."""
    theta = THETA | {"rd_star": R_STAR}
    loss = LAW.predict(theta, 1e7, 4e10, 1e10)
    assert loss == pytest.approx(GENERAL["chinchilla"].predict(BASE, 1e7, effective_tokens(4e10, 1e10)), rel=1e-12)


def test_runs_that_repeat_nothing_are_refused():
    obs = runs("constrained")
    fresh = Observations(obs.tokens, obs.loss, params=obs.params, extra={"unique_tokens": obs.tokens})
    with pytest.raises(UserError, match="0 distinct numbers of passes over their unique tokens"):
        fit(fresh, LAW, "params")


def test_noise_moves_forecasts_little():
    found = fit(runs("constrained", 0.005), LAW, "params")
    truth = LAW.predict(THETA, 1e10, 1e12, 1e11)
    assert found.predict(x=1e10, tokens=1e12, unique_tokens=1e11) == pytest.approx(truth, rel=0.01)
