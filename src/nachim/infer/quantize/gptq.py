"""GPTQ: weights rounded column by column, each error made up for by the columns that are still free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from nachim.model.quantized.grid import Coded, Grid, fit, joined, nearest
from nachim.spec import Int4
from nachim.spec.quantize import Scheme

DAMPING = 0.01
BLOCK = 128
"""Columns whose errors are handed on at once, where no group says how many."""

Round = Callable[[int, Tensor], Tensor]
"""Rounds column c of the matrix [O]: what it decodes to, [O]."""

Begin = Callable[[int, Tensor], Round]
"""Called with the first column of a block and the block's columns [O, C] as they then are; gives what rounds them."""


def gptq(weight_OI: Tensor, moments_II: Tensor, scheme: Scheme, damping: float = DAMPING) -> Coded:
    """A matrix [O, I] in few bits, rounded by GPTQ for inputs of these second moments (see `compensated`).

    A group of `Int4` gets its scale when its first column is reached, from its weights as they then are; other grids
    are those of the weights given. A row whose output would move less by rounding to nearest is rounded so: no output
    moves more than by that, over the inputs seen.
    """
    plain, found = nearest(weight_OI, scheme), _rounded(weight_OI, moments_II, scheme, damping)
    errors = [moved(coded.decode() - weight_OI, moments_II) for coded in (plain, found)]
    better_O1 = (errors[1] < errors[0])[:, None]
    codes_OI = torch.where(better_O1, found.codes_OI, plain.codes_OI)
    if not isinstance(scheme, Int4):
        return Coded(plain.grid, codes_OI)
    scale_OG = torch.where(better_O1, found.grid.scale_OG, plain.grid.scale_OG)
    zero_OG = plain.grid.zero_OG
    if zero_OG is not None:
        zero_OG = torch.where(better_O1, found.grid.zero_OG, zero_OG)
    return Coded(replace(plain.grid, scale_OG=scale_OG, zero_OG=zero_OG), codes_OI)


def _rounded(weight_OI: Tensor, moments_II: Tensor, scheme: Scheme, damping: float) -> Coded:
    if not isinstance(scheme, Int4):
        grid = fit(weight_OI, scheme)
        values_OI = compensated(weight_OI, moments_II, BLOCK, lambda first, block_OC: _column(grid), damping)
        return Coded(grid, grid.round(values_OI))
    grids: list[Grid] = []

    def begin(first: int, block_OC: Tensor) -> Round:
        grids.append(fit(block_OC, scheme))
        return _column(grids[-1], first)

    values_OI = compensated(weight_OI, moments_II, scheme.width(weight_OI.shape[1]), begin, damping)
    grid = joined(grids)
    return Coded(grid, grid.round(values_OI))


def _column(grid: Grid, first: int = 0) -> Round:
    """Rounds to `grid`, whose own first column is column `first` of the matrix."""
    return lambda c, weight_O: grid.nearest(weight_O[:, None], c - first)[:, 0]


def compensated(weight_OI: Tensor, moments_II: Tensor, block: int, begin: Begin, damping: float = DAMPING) -> Tensor:
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
        round_ = begin(first, free_OC)
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
    """How far each output moved when the weights did by `change_OI`: the diagonal of change moments change^T, [O]."""
    change_OI = change_OI.double()
    return ((change_OI @ moments_II.double()) * change_OI).sum(1)
