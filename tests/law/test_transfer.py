from __future__ import annotations

import numpy as np
import pytest

from nachim.law import Transfer, batch_opt, data_opt, lr_opt, model_opt
from nachim.law.transfer import optimum
from nachim.spec.error import UserError


def test_the_prior_at_a_million_flops():
    assert model_opt(1e6) == pytest.approx(240, abs=1)
    assert data_opt(1e6) == pytest.approx(4169, abs=5)
    assert model_opt(1e6) * data_opt(1e6) == pytest.approx(1e6, rel=1e-3)
    assert batch_opt(1e6) == pytest.approx(26.8, abs=0.05)
    assert lr_opt(1e6) == pytest.approx(0.0555, abs=1e-4)


def test_the_prior_at_the_published_runs():
    """arXiv 2401.02954: 7B on 2T tokens ran at 2304 x 4096 tokens a batch and 4.2e-4; 67B at 3.2e-4."""
    small = (72 * 30 * 4096**2 + 12 * 30 * 4096 * 4096) * 2e12
    large = (72 * 95 * 8192**2 + 12 * 95 * 8192 * 4096) * 2e12
    assert batch_opt(small) == pytest.approx(2304 * 4096, rel=0.03)
    assert lr_opt(small) == pytest.approx(4.2e-4, rel=0.02)
    assert lr_opt(large) == pytest.approx(3.2e-4, rel=0.03)


def test_a_correction_scales_the_whole_law():
    law = Transfer(lr_factor=0.5, batch_factor=3.0)
    assert law.lr(1e15) == 0.5 * lr_opt(1e15)
    assert law.batch_tokens(1e15) == 3 * batch_opt(1e15)


def test_the_best_of_a_sweep_is_the_vertex():
    lr = np.geomspace(1e-4, 1e-2, 9)
    assert optimum(lr, 3 + 0.1 * np.log(lr / 1.3e-3) ** 2) == pytest.approx(1.3e-3, rel=1e-6)


def test_a_vertex_beyond_the_sweep_is_held():
    values = np.geomspace(1.0, 16.0, 5)
    assert optimum(values, np.log(values / 1e4) ** 2) == pytest.approx(32)
    assert optimum(values, -(np.log(values) ** 2)) == pytest.approx(16)


def test_what_is_no_sweep_is_refused():
    with pytest.raises(UserError, match="at least 3 values"):
        optimum(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
