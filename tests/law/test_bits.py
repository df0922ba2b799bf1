from __future__ import annotations

import pytest

from nachim.law import LAWS as GENERAL
from nachim.law.precision import effective_share
from tests.law.library import LAWS, TRUTH

BASE = {name: TRUTH["precision"][name] for name in ("E", "A", "B", "alpha", "beta")}


@pytest.mark.parametrize("bits", [3.0, 4.0, 8.0, 12.0])
def test_the_share_of_parameters_is_the_plans(bits):
    """Below 16 bits, with the paper's gamma, the law is Chinchilla's of N·effective_share."""
    loss = LAWS["precision-weights"].predict(TRUTH["precision-weights"], 1e9, 2e10, bits)
    share = effective_share(weight_bits=bits)
    assert loss == pytest.approx(float(GENERAL["chinchilla"].predict(BASE, 1e9 * share, 2e10)), rel=1e-12)


def test_three_parts_multiply():
    """arXiv 2411.04330 eq. 4; with many bits each factor is 1."""
    law, theta = LAWS["precision"], TRUTH["precision"]
    share = effective_share(weight_bits=4, cache_bits=4)
    loss = law.predict(theta, 1e9, 2e10, 4.0, 1e3, 4.0)
    assert loss == pytest.approx(float(GENERAL["chinchilla"].predict(BASE, 1e9 * share, 2e10)), rel=1e-12)
    whole = law.predict(theta, 1e9, 2e10, 1e3, 1e3, 1e3)
    assert whole == pytest.approx(float(GENERAL["chinchilla"].predict(BASE, 1e9, 2e10)), rel=1e-12)
