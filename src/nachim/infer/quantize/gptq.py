"""GPTQ: weights rounded column by column, each error made up for by the columns that are still free."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nachim.model.quantized.grid import Coded, nearest
from nachim.spec.quantize import Scheme

DAMPING = 0.01
BLOCK = 128
"""Columns whose errors are handed on at once."""

Round = Callable[[int, Tensor], Tensor]
"""Rounds column c of a matrix, [O]: what it decodes to, [O]."""


def gptq(weight_OI: Tensor, moments_II: Tensor, scheme: Scheme, damping: float = DAMPING) -> Coded:
    """A matrix [O, I] in few bits, rounded by GPTQ for inputs of these second moments (see `compensated`).

    Columns of large inputs come first, while many are free to make up for them; so that groups stay together, their
    grids are those of the weights given (`ideas/quantize.md` compares). A row whose output would move less by rounding
    to nearest is rounded so: no output moves more than by that, over the inputs seen.
    """
    plain = nearest(weight_OI, scheme)
    grid, order_I = plain.grid, moments_II.diagonal().argsort(descending=True, stable=True)
    columns = order_I.tolist()

    def round_(c: int, weight_O: Tensor) -> Tensor:
        return grid.nearest(weight_O[:, None], columns[c])[:, 0]

    ordered_OI = compensated(weight_OI[:, order_I], moments_II[order_I][:, order_I], round_, damping)
    codes_OI = grid.round(ordered_OI[:, order_I.argsort()])
    before_O, after_O = (moved(grid.decode(codes) - weight_OI, moments_II) for codes in (plain.codes_OI, codes_OI))
    return Coded(grid, torch.where((after_O < before_O)[:, None], codes_OI, plain.codes_OI))


def compensated(
    weight_OI: Tensor, moments_II: Tensor, round_: Round, damping: float = DAMPING, block: int = BLOCK
) -> Tensor:
    """`weight_OI` rounded so that what it gives for its inputs moves least, decoded, [O, I] in fp32.

    `moments_II` are the inputs' second moments, in any multiple. Of a column's error, divided by the column's own entry
    of the upper Cholesky factor of their inverse, each later column takes its entry of that row (arXiv 2210.17323,
    algorithm 1); the errors of `block` columns are handed to those behind them at once. `damping` times the mean second
    moment is added to each. A channel that was never seen is rounded to nearest, and moves nothing.
    """
    free_OI = weight_OI.detach().to(torch.float32, copy=True)
    factor_II = inverse_factor(moments_II, damping).float()
    for first in range(0, free_OI.shape[1], block):
        here = slice(first, first + block)
        free_OC, factor_CC = free_OI[:, here], factor_II[here, here]
        errors_OC = torch.empty_like(free_OC)
        for c in range(free_OC.shape[1]):
            rounded_O = round_(first + c, free_OC[:, c])
            errors_OC[:, c] = (free_OC[:, c] - rounded_O) / factor_CC[c, c]
            free_OC[:, c + 1 :].addr_(errors_OC[:, c], factor_CC[c, c + 1 :], alpha=-1)
            free_OC[:, c] = rounded_O
        free_OI[:, here.stop :] -= errors_OC @ factor_II[here, here.stop :]
    return free_OI


def inverse_factor(moments_II: Tensor, damping: float = DAMPING) -> Tensor:
    """The upper triangle U with U^T U = (moments + damping)^-1, in fp64; channels never seen stand apart in it."""
    moments_II = moments_II.double().clone()
    diagonal_I = moments_II.diagonal()
    dead_I = diagonal_I == 0
    diagonal_I += damping * diagonal_I.mean()
    diagonal_I[dead_I] = 1.0
    lower_II = torch.linalg.cholesky(moments_II)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower_II), upper=True)


def moved(change_OI: Tensor, moments_II: Tensor) -> Tensor:
    """How far each output moved when the weights did by `change_OI`: the diagonal of change moments change^T, [O].

    Computed in the precision of the moments.
    """
    change_OI = change_OI.to(moments_II.dtype)
    return ((change_OI @ moments_II) * change_OI).sum(1)
