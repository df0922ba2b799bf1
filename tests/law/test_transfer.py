from __future__ import annotations

import numpy as np
import pytest

from nachim.law import Observations, Transfer, batch_opt, data_opt, fit_transfer, lr_opt, model_opt
from nachim.law.transfer import optimum
from nachim.spec.error import UserError


def sweep(**columns: np.ndarray) -> Observations:
    n = len(next(iter(columns.values())))
    return Observations(tokens=np.full(n, 1e8), params=np.full(n, 1e6), **columns)


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


def test_a_sweep_corrects_the_prior():
    lr = np.geomspace(1e-4, 1e-2, 9)
    found = fit_transfer(sweep(lr=lr, loss=3 + 0.1 * np.log(lr / 1.3e-3) ** 2))
    assert found.lr(6e14) == pytest.approx(1.3e-3, rel=1e-6)
    assert found.lr(6e18) == pytest.approx(1.3e-3 * 1e4**-0.125, rel=1e-6)
    assert found.batch_factor == 1
    assert not found.lr_at_edge
    assert Transfer().batch_tokens(1e6) == batch_opt(1e6)


def test_a_grid_corrects_both():
    lr, batch = (side.ravel() for side in np.meshgrid(np.geomspace(1e-4, 1e-2, 5), np.geomspace(1e3, 1e5, 5)))
    loss = 3 + 0.1 * np.log(lr / 1e-3) ** 2 + 0.05 * np.log(batch / 2e4) ** 2
    found = fit_transfer(sweep(lr=lr, batch_tokens=batch, loss=loss))
    assert found.lr(6e14) == pytest.approx(1e-3, rel=1e-6)
    assert found.batch_tokens(6e14) == pytest.approx(2e4, rel=1e-6)


def test_an_optimum_at_the_edge_is_flagged_and_held():
    values = np.geomspace(1.0, 16.0, 5)
    place, at_edge = optimum(values, np.log(values / 1e4) ** 2)
    assert at_edge
    assert place == pytest.approx(32)
    place, at_edge = optimum(values, -(np.log(values) ** 2))
    assert (place, at_edge) == (pytest.approx(16), True)


def test_what_is_no_sweep_is_refused():
    with pytest.raises(UserError, match="at least 3 values of 'lr' or of 'batch_tokens'"):
        fit_transfer(sweep(lr=np.array([1e-3, 2e-3]), loss=np.array([3.0, 3.1])))
    with pytest.raises(UserError, match="one model at one compute budget"):
        fit_transfer(Observations(np.array([1e8, 2e8]), np.ones(2), params=np.ones(2), lr=np.ones(2)))
    with pytest.raises(UserError, match="at least 3 values"):
        optimum(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
