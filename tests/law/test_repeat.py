from __future__ import annotations

import itertools
import math

import pytest

from nachim.law.repeat import R_STAR, effective_tokens
from nachim.spec.error import UserError


def test_fresh_tokens_are_worth_themselves():
    assert effective_tokens(5e9, 1e10) == 5e9
    assert effective_tokens(1e10, 1e10) == 1e10
    assert effective_tokens(1e10 * (1 + 1e-9), 1e10) == pytest.approx(1e10 * (1 + 1e-9), rel=1e-12)


def test_four_epochs_are_about_as_good_as_fresh():
    """arXiv 2305.16264, abstract: up to four epochs change the loss negligibly; more are worth less."""
    assert effective_tokens(4.0, 1.0) / 4 == pytest.approx(0.93, abs=0.01)
    assert effective_tokens(44.0, 1.0) / 44 < 0.4


def test_its_closed_form_and_its_limit():
    repetitions = 7.0
    by_hand = 1 + 15.4 * (1 - math.exp(-repetitions / 15.4))
    assert effective_tokens(8.0, 1.0) == pytest.approx(by_hand)
    assert effective_tokens(1e9, 1.0) == pytest.approx(1 + R_STAR)
    values = [effective_tokens(float(epochs), 1.0) for epochs in range(1, 60)]
    gains = [after - before for before, after in itertools.pairwise(values)]
    assert all(later < earlier < 1 for earlier, later in itertools.pairwise(gains))


def test_the_slope_falls_to_one_over_e_after_r_star_repetitions():
    step = 1e-4
    at = 1 + R_STAR
    slope = (effective_tokens(at + step, 1.0) - effective_tokens(at - step, 1.0)) / (2 * step)
    assert slope == pytest.approx(1 / math.e, rel=1e-3)


@pytest.mark.parametrize(("tokens", "unique"), [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, -1.0)])
def test_nothing_makes_nothing(tokens, unique):
    with pytest.raises(UserError, match="must be above 0"):
        effective_tokens(tokens, unique)
