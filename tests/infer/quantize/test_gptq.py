"""Rounding column by column against solving for the free columns anew each time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nachim.infer.quantize.gptq import compensated, gptq, inverse_factor, moved
from nachim.model.quantized import grid
from nachim.spec import NF4, Int4, Int8
from nachim.spec.quantize import Scheme


def nearest(step: float):
    """Rounds to multiples of `step`."""
    return lambda c, column_O: (column_O / step).round() * step


def inputs(seed: int, rows: int, width: int) -> Tensor:
    """Correlated inputs [rows, width] in fp64."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, dtype=torch.float64, generator=draw)
    return x @ torch.randn(width, width, dtype=torch.float64, generator=draw)


def drawn(seed: int, outputs: int, width: int) -> Tensor:
    return torch.randn(outputs, width, generator=torch.Generator().manual_seed(seed + 1000))


def solved(weight_OI: Tensor, moments_II: Tensor, step: float, damping: float) -> Tensor:
    """The same greedy choice, its free columns solved by least squares after each column that is fixed."""
    moments_II = moments_II + damping * moments_II.diagonal().mean() * torch.eye(len(moments_II))
    free_OI = weight_OI.double().clone()
    for c in range(free_OI.shape[1]):
        free_OI[:, c] = (free_OI[:, c] / step).round() * step
        lost_OF = weight_OI.double()[:, : c + 1] - free_OI[:, : c + 1]
        crossed_OR = lost_OF @ moments_II[: c + 1, c + 1 :]
        free_OI[:, c + 1 :] = (
            weight_OI.double()[:, c + 1 :] + torch.linalg.solve(moments_II[c + 1 :, c + 1 :], crossed_OR.mT).mT
        )
    return free_OI


@pytest.mark.parametrize("block", [4, 5, 24])
def test_it_is_the_greedy_solution_of_least_squares(block: int) -> None:
    x = inputs(0, 60, 24)
    weight, moments = drawn(0, 7, 24), x.mT @ x
    found = compensated(weight, moments, nearest(0.5), 0.01, block)
    torch.testing.assert_close(found.double(), solved(weight, moments, 0.5, 0.01), rtol=0, atol=1e-6)


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    weight = drawn(3, 9, 32)
    moments = torch.diag(torch.rand(32, generator=torch.Generator().manual_seed(3)) + 0.1)
    assert torch.equal(compensated(weight, moments, nearest(0.3), block=8), nearest(0.3)(0, weight))


@pytest.mark.parametrize("seed", range(20))
def test_outputs_move_less_than_by_rounding_to_nearest(seed: int) -> None:
    x = inputs(seed, 100, 32)
    weight, moments = drawn(seed, 16, 32), x.mT @ x
    plain = moved(nearest(0.4)(0, weight) - weight, moments)
    made_up = moved(compensated(weight, moments, nearest(0.4), block=16) - weight, moments)
    assert made_up.sum() < 0.7 * plain.sum()


def test_the_factor_is_of_the_inverse() -> None:
    x = inputs(5, 50, 12)
    moments = x.mT @ x
    upper = inverse_factor(moments, 0.0)
    torch.testing.assert_close(upper.mT @ upper, torch.linalg.inv(moments), rtol=1e-8, atol=1e-12)
    assert torch.equal(upper, upper.triu())


def test_how_far_outputs_move_is_the_squared_error_over_the_inputs() -> None:
    x = inputs(6, 40, 10)
    change = drawn(6, 3, 10)
    torch.testing.assert_close(moved(change, x.mT @ x), (x @ change.double().mT).square().sum(0))


def test_channels_never_seen_are_rounded_to_nearest_and_move_nothing() -> None:
    x = inputs(7, 40, 16)
    x[:, 5] = 0
    weight, moments = drawn(7, 4, 16), x.mT @ x
    seen = [i for i in range(16) if i != 5]
    found = compensated(weight, moments, nearest(0.5), damping=0.0)
    alone = compensated(weight[:, seen], moments[seen][:, seen], nearest(0.5), damping=0.0)
    torch.testing.assert_close(found[:, seen], alone)
    assert torch.equal(found[:, 5], (weight[:, 5] / 0.5).round() * 0.5)


def test_fewer_inputs_than_channels_are_enough() -> None:
    x = inputs(8, 5, 24)
    weight, moments = drawn(8, 6, 24), x.mT @ x
    found = compensated(weight, moments, nearest(0.5), block=8)
    assert torch.isfinite(found).all()
    assert moved(found - weight, moments).sum() < moved(nearest(0.5)(0, weight) - weight, moments).sum()


def test_the_weights_given_stay_as_they_are() -> None:
    weight = drawn(9, 3, 8)
    kept = weight.clone()
    compensated(weight, torch.eye(8), nearest(0.5), block=4)
    assert torch.equal(weight, kept)


SCHEMES = [Int8(), Int4(group=16), Int4(group=16, symmetric=True), NF4(group=16), NF4(group=16, double=False)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_no_output_moves_more_than_by_rounding_to_nearest(scheme: Scheme) -> None:
    for seed in range(5):
        x = inputs(seed, 100, 64)
        weight, moments = drawn(seed, 24, 64), x.mT @ x
        plain = moved(grid.nearest(weight, scheme).decode() - weight, moments)
        found = moved(gptq(weight, moments, scheme).decode() - weight, moments)
        assert (found <= plain).all()
        assert found.sum() < 0.7 * plain.sum()


def test_columns_of_large_inputs_come_first_and_groups_stay_where_they_are() -> None:
    """The codes are those of a matrix whose columns were put in order, on the grid of the one that was given."""
    x = inputs(1, 100, 32) * torch.rand(32, generator=torch.Generator().manual_seed(1)).double()
    weight, scheme, moments = drawn(1, 8, 32), Int4(group=16), x.mT @ x
    order = sorted(range(32), key=lambda i: -moments[i, i].item())
    assert order != list(range(32))
    fixed = grid.fit(weight, scheme)
    ordered = compensated(
        weight[:, order], moments[order][:, order], lambda c, column: fixed.nearest(column[:, None], order[c])[:, 0]
    )
    found, rows = gptq(weight, moments, scheme), moved(ordered - weight[:, order], moments[order][:, order])
    better = rows < moved(fixed.nearest(weight) - weight, moments)
    assert better.any()
    torch.testing.assert_close(found.decode()[better][:, order], ordered[better])
    assert torch.equal(found.grid.scale_OG, fixed.scale_OG)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_uncorrelated_inputs_give_the_codes_of_rounding_to_nearest(scheme: Scheme) -> None:
    weight = drawn(2, 6, 32)
    found, plain = gptq(weight, torch.eye(32), scheme), grid.nearest(weight, scheme)
    assert torch.equal(found.codes_OI, plain.codes_OI)
    assert torch.equal(found.decode(), plain.decode())


def test_rows_that_compensation_would_harm_are_rounded_to_nearest() -> None:
    """A greedy choice is not always the best: of many rows some lose by it."""
    x = inputs(4, 100, 8)
    moments = x.mT @ x
    weight, scheme = drawn(4, 400, 8), Int4(group=8)
    fixed = grid.fit(weight, scheme)
    plain = moved(fixed.nearest(weight) - weight, moments)
    greedy = compensated(weight, moments, lambda c, column: fixed.nearest(column[:, None], c)[:, 0])
    assert (moved(greedy - weight, moments) > plain).any()
    assert (moved(gptq(weight, moments, scheme).decode() - weight, moments) <= plain).all()
