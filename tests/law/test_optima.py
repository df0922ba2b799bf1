from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from nachim.law import LAWS, Observations, study
from nachim.law.optima import optima
from nachim.spec.error import UserError
from tests.law.ladders import TRUTH, ladder


@pytest.mark.parametrize("name", ["chinchilla", "coupled"])
def test_the_set_ends_where_the_loss_is_that_much_above_the_best(name):
    """Against scipy's root finder on the true surface; noise-free runs."""
    law, flops, within = LAWS[name], 1e19, 0.004
    found = optima(study(ladder(law, np.random.default_rng(0), 0.0), law=name, draws=40), flops, within)
    x, tokens = law.allocation(TRUTH[name], flops, "params")
    best = float(law.predict(TRUTH[name], x, tokens))

    def over(log_x: float) -> float:
        return float(law.predict(TRUTH[name], np.exp(log_x), flops / 6 / np.exp(log_x)) / best - 1 - within)

    truth = [np.exp(brentq(over, np.log(x), np.log(x) + way)) for way in (-6, 6)]
    assert found.x == pytest.approx(float(x), rel=1e-3)
    assert found.tokens == pytest.approx(float(tokens), rel=1e-3)
    assert found.loss == pytest.approx(best, rel=1e-6)
    assert found.x_range == pytest.approx(truth, rel=1e-3)
    assert found.tokens_range == pytest.approx([flops / 6 / truth[1], flops / 6 / truth[0]], rel=1e-3)
    assert found.x_inner == pytest.approx(found.x_outer, rel=0.01)
    assert found.exponent == pytest.approx(float(law.exponents(TRUTH[name])[0]), abs=1e-4)


def test_noise_widens_the_outer_set_and_narrows_the_inner():
    runs = [ladder(LAWS["chinchilla"], np.random.default_rng(3), noise) for noise in (1e-4, 5e-3)]
    quiet, loud = (optima(study(one, law="chinchilla", draws=80), 1e18) for one in runs)
    assert loud.x_outer[0] < quiet.x_outer[0]
    assert loud.x_outer[1] > quiet.x_outer[1]
    assert np.ptp(np.log(loud.x_inner or (1, 1))) < np.ptp(np.log(quiet.x_inner))
    assert loud.x_outer[0] < loud.x_range[0] < loud.x < loud.x_range[1] < loud.x_outer[1]
    assert loud.exponent_interval90[0] < loud.exponent < loud.exponent_interval90[1]
    assert set(loud.by_law) == set(LAWS)


def test_the_set_grows_with_its_tolerance_until_nothing_is_sure():
    reading = study(ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.02), draws=80)
    sets = [optima(reading, 1e19, within) for within in (1e-5, 1e-3, 1e-2)]
    widths = [np.ptp(np.log(one.x_range)) for one in sets]
    assert widths == sorted(widths)
    assert sets[0].x_inner is None
    assert sets[0].tokens_inner is None


def test_bad_questions_are_refused():
    reading = study(ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.01), draws=40)
    for flops in (-1.0, float("nan"), 0.0):
        with pytest.raises(UserError, match="flops must be a positive"):
            optima(reading, flops)
    for within in (0.0, 1.0, -0.1):
        with pytest.raises(UserError, match="share of the loss"):
            optima(reading, 1e18, within)


def test_flops_per_token_spends_the_budget_without_a_six():
    runs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.0)
    named = Observations(runs.tokens, runs.loss, flops_per_token=6 * runs.params)
    one, other = (optima(study(table, law="chinchilla", draws=40), 1e18) for table in (runs, named))
    assert other.x == pytest.approx(6 * one.x, rel=1e-3)
    assert other.tokens_range == pytest.approx(one.tokens_range, rel=1e-3)
