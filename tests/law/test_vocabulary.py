from __future__ import annotations

import numpy as np
import pytest

from nachim.law import LAWS as GENERAL
from tests.law.library import LAWS, TRUTH


def test_one_vocabulary_leaves_chinchilla_with_a_higher_floor():
    t = TRUTH["vocabulary"]
    plain = {"E": 0.5 + 20 * 3e7**-0.25, "A": 50.0, "B": 200.0, "alpha": 0.3, "beta": 0.28}
    x, tokens = np.array([1e8, 3e9]), np.array([1e10, 1e11])
    loss = LAWS["vocabulary"].predict(t, x=x, vocab_params=3e7, tokens=tokens)
    assert loss == pytest.approx(GENERAL["chinchilla"].predict(plain, x, tokens))


def test_the_best_vocabulary_at_one_compute_grows_slower_than_the_model():
    """arXiv 2407.13623 sec. 4: with its own exponents, 0.447 and 0.671, N_v grows as about N_nv^0.83."""
    t = {"E": 0.5, "A1": 1.831e3, "A2": 100.0, "B": 2.1e4, "alpha1": 0.447, "alpha2": 0.671, "beta": 0.447}
    grid = np.geomspace(1e6, 1e11, 4001)
    best = []
    for x in (1e9, 1e11):
        flops = 6 * x * 20 * x
        tokens = flops / (6 * (x + grid))
        best.append(grid[LAWS["vocabulary"].predict(t, x=x, vocab_params=grid, tokens=tokens).argmin()])
    assert 0.7 < np.log(best[1] / best[0]) / np.log(100) < 1.0
