from __future__ import annotations

import numpy as np
import pytest

from nachim.law.scoring import brier, chance_of_right, emergence, exact_match, per_token, tokens_wrong
from nachim.spec.error import UserError


def test_scores_are_those_of_independent_tokens():
    rng = np.random.default_rng(0)
    right = rng.random((200_000, 5)) < 0.7
    assert exact_match(0.7, 5) == pytest.approx(right.all(axis=1).mean(), abs=0.003)
    assert tokens_wrong(0.7, 5) == pytest.approx((~right).sum(axis=1).mean(), abs=0.01)
    assert brier(0.7) == pytest.approx(0.09)
    assert per_token(exact_match(0.7, 5), 5) == pytest.approx(0.7)


def test_a_loss_is_a_chance():
    assert chance_of_right(np.log(4)) == pytest.approx(0.25)
    assert chance_of_right(2.0, bits=True) == pytest.approx(0.25)


def test_a_smooth_ability_leaps_under_exact_match_alone():
    loss = 0.1 + 1.9 * np.geomspace(1, 1e4, 15) ** -0.3
    p = chance_of_right(loss)
    linear = emergence(-tokens_wrong(p, 30))
    assert emergence(exact_match(p, 30)) > 10 * linear
    assert linear < 2 * 14


def test_a_straight_rise_is_no_leap():
    assert emergence(np.linspace(0, 1, 8)) == pytest.approx(7)
    assert emergence(np.linspace(1, 0, 8)) == pytest.approx(-7)
    assert emergence(np.array([0.0, 0, 0, 0, 1])) == np.inf
    assert emergence(np.ones(4)) == 0


def test_what_is_no_chance_is_refused():
    with pytest.raises(UserError, match="between 0 and 1"):
        exact_match(1.2, 3)
    with pytest.raises(UserError, match="at least one token"):
        exact_match(0.5, 0.5)
    with pytest.raises(UserError, match="at least 3 scales"):
        emergence(np.array([0.1, 0.2]))
