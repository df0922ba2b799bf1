"""What low precision costs, and what samples are worth, against arithmetic done apart from the code."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from nachim.law.precision import effective_share, rounding_penalty
from nachim.law.samples import accuracy_needed
from nachim.spec import UserError


def test_the_penalty_at_one_point_by_logarithms():
    # 0.0598 · 1e10^0.5068 / 1e8^0.3439 · exp(-3 / 0.5907), as a sum of base-10 logarithms.
    exponent = math.log10(0.0598) + 10 * 0.5068 - 8 * 0.3439 - 3 / 0.5907 * math.log10(math.e)
    assert rounding_penalty(1e8, 1e10, 3) == pytest.approx(10**exponent, rel=1e-12)


def test_the_penalty_follows_its_powers():
    base = rounding_penalty(1e9, 1e11, 4)
    assert rounding_penalty(1e9, 1e12, 4) / base == pytest.approx(10**0.5068)
    assert rounding_penalty(1e10, 1e11, 4) / base == pytest.approx(10**-0.3439)
    assert base / rounding_penalty(1e9, 1e11, 5) == pytest.approx(math.exp(1 / 0.5907))
    assert rounding_penalty(1e9, 1e11, 16) == 0


def test_rounding_makes_more_tokens_harmful_where_the_data_term_falls_slower():
    # d/dD of B·D^-b + k·D^g is zero at D = (bB / gk)^(1/(b+g)); both sides written apart from the code.
    params, b, slope, g = 2.2e8, 0.3658, 2085.43, 0.5068
    k = 0.0598 * params**-0.3439 * math.exp(-3 / 0.5907)
    closed = (b * slope / (g * k)) ** (1 / (b + g))
    found = minimize_scalar(
        lambda log: slope * math.exp(-b * log) + rounding_penalty(params, math.exp(log), 3), bounds=(15, 35)
    )
    assert math.exp(found.x) == pytest.approx(closed, rel=1e-3)


def test_the_effective_share_of_parameters():
    assert effective_share() == 1
    assert effective_share(weight_bits=8) == pytest.approx(1 - math.exp(-8 / 2.6745))
    assert effective_share(weight_bits=4, cache_bits=4) == pytest.approx(
        (1 - math.exp(-4 / 2.6745)) * (1 - math.exp(-4 / 0.9578))
    )


@pytest.mark.parametrize("bad", [(0, 1e9, 4), (1e9, -1, 4), (1e9, 1e9, 0), (math.nan, 1e9, 4)])
def test_values_that_are_no_precision_are_refused(bad):
    with pytest.raises(UserError, match="needs a value above 0"):
        rounding_penalty(*bad)


@pytest.mark.parametrize(("right", "samples"), [(1, 1), (1, 3), (2, 4), (3, 2)])
def test_the_accuracy_needed_undoes_counting_the_outcomes(right, samples):
    answers = range(5)  # of five equally likely answers `right` are right
    outcomes = list(itertools.product(answers, repeat=samples))
    share = sum(any(answer < right for answer in outcome) for outcome in outcomes) / len(outcomes)
    assert accuracy_needed(share, samples) == pytest.approx(right / 5)


def test_the_accuracy_needed_is_a_lower_bound_where_questions_differ():
    accuracy = np.random.default_rng(0).beta(0.5, 1.5, 1000)
    assert accuracy_needed(float(np.mean(1 - (1 - accuracy) ** 10)), 10) < accuracy.mean()


def test_samples_that_cannot_help_are_refused():
    with pytest.raises(UserError, match="from 0 to 1"):
        accuracy_needed(1.5, 2)
    with pytest.raises(UserError, match="at least one answer"):
        accuracy_needed(0.5, 0)
    assert accuracy_needed(1.0, 3) == 1
