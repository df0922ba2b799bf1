from __future__ import annotations

import numpy as np
import pytest

from nachim.law import LAWS as GENERAL
from tests.law.library import LAWS, TRUTH


def test_one_granularity_leaves_chinchilla():
    """arXiv 2402.07871 eq. 9 at G = 8: A is g·8^-gamma + a."""
    t = TRUTH["granularity"]
    plain = {"E": 0.47, "A": 2.1 * 8**-0.58 + 18.1, "B": 30.8, "alpha": 0.115, "beta": 0.147}
    x, tokens = np.array([1e8, 4e9]), np.array([2e10, 1e11])
    assert LAWS["granularity"].predict(t, x, tokens, 8.0) == pytest.approx(
        GENERAL["chinchilla"].predict(plain, x, tokens)
    )


def test_a_dense_model_has_the_start_of_the_saturating_count():
    """arXiv 2202.01169 sec. 4.3: Ê(1) = E_start, and Ê tends to E_max."""
    t, law = TRUTH["routing"], LAWS["routing"]
    for experts, hat in ((1.0, 1.847), (1e12, 314.478)):
        by_hand = -0.082 * 8 - 0.108 * np.log10(hat) + 0.009 * 8 * np.log10(hat) + 1.104
        assert np.log10(law.predict(t, 1e8, experts)) == pytest.approx(by_hand, rel=1e-9)


def test_routing_stops_helping_at_the_papers_size():
    """arXiv 2202.01169 table 3 and sec. 5: d log L / d log Ê = b + c·log N is 0 at N = 10^(-b/c), 937 B for S-BASE
    with unrounded coefficients; the printed ones give 1e12."""
    t, law = TRUTH["routing"], LAWS["routing"]
    assert law.predict(t, 10**12, 1.0) == pytest.approx(law.predict(t, 10**12, 512.0), rel=1e-9)
    assert law.predict(t, 1e8, 512.0) < law.predict(t, 1e8, 1.0)


def test_a_dense_model_is_a_sum_of_powers():
    """arXiv 2501.12370 eq. 6 at S = 0."""
    t = TRUTH["sparsity"]
    by_hand = 0.94 + 16612.5 * 1e9**-0.5962 + 5455.67 * 1e11**-0.3954 + 0.4598 + 17.26 * 1e9**-0.1595
    assert LAWS["sparsity"].predict(t, 1e9, 1e11, 1.0) == pytest.approx(by_hand)
    assert LAWS["sparsity"].predict(t, 1e11, 1e12, 0.1) < LAWS["sparsity"].predict(t, 1e10, 1e12, 1.0)
