"""Moments in 8 bits: block-wise dynamic quantisation (arXiv 2110.02861, sec. 2)."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from nachim.spec import AdamW8

DECADES = 7
"""Powers of ten that a map spans."""
SHIFT, KEYS = 15, 2**17
"""Low bits of an fp32 value that `_table` does not look at, and the number of those it does."""


@functools.cache
def levels(signed: bool, device: torch.device = torch.device("cpu")) -> Tensor:
    """The 256 values that a code can mean, ascending, fp32: dynamic tree quantisation (sec. 1.3 and 2.2).

    The further down its power of ten, the fewer bits are left for the fraction: 2^i equal cells of [0.1, 1] in the
    decade i of 7, one bit more without a sign; the middles of cells are the values, beside 0 and 1.
    """
    found = [0.0, 1.0]
    for i in range(DECADES):
        cells = 2 ** (i + (not signed))
        middles = [10.0 ** (i + 1 - DECADES) * (0.1 + 0.9 * (j + 0.5) / cells) for j in range(cells)]
        found += middles + [-middle for middle in middles] * signed
    return torch.tensor(sorted(found), device=device)


@functools.cache
def _borders(signed: bool, device: torch.device) -> Tensor:
    """Up to which value each code is the nearest [256]. Without a sign, all above 0 is at least the code 1.

    A second moment that fell to 0 beside a first one that did not would make a step of first / eps (the zero-point
    problem of arXiv 2309.01507, sec. 4.1).
    """
    values = levels(signed, device)
    middles = (values[1:] + values[:-1]) / 2
    if not signed:
        middles[0] = 0.0
    return torch.cat([middles, torch.full_like(middles[:1], torch.inf)])


@functools.cache
def _table(signed: bool, device: torch.device) -> Tensor:
    """The least code of all values that begin with the same 17 bits: none but the next can be another's.

    They are sign, exponent and 8 bits of the fraction, and so lie closer together than borders do. Ten times as fast
    as looking for each value's place between the borders.
    """
    begins = torch.arange(KEYS, dtype=torch.int64, device=device) << SHIFT
    ends = begins | ((1 << SHIFT) - 1)
    low = torch.minimum(
        *(bits.to(torch.int32).view(torch.float32).nan_to_num(1.0, 1.0, -1.0) for bits in (begins, ends))
    )
    return torch.bucketize(low, _borders(signed, device), out_int32=True)


def quantise(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes [n] (uint8) and scales [n / 256, rounded up] of fp32 `values` [n]: in each block over its largest size."""
    blocks = _blocks(values)
    scales = torch.linalg.vector_norm(blocks, ord=torch.inf, dim=1)
    shares = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).view(-1)
    least, borders = _table(signed, values.device), _borders(signed, values.device)
    codes = least.index_select(0, shares.view(torch.int32).bitwise_right_shift(SHIFT).bitwise_and_(KEYS - 1))
    codes += borders.index_select(0, codes) < shares
    return codes[: len(values)].to(torch.uint8), scales


def restore(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """The fp32 values [n] that `quantise` gave `codes` and `scales`."""
    values = _blocks(levels(signed, codes.device)[codes.int()])
    return values.mul_(scales[:, None]).view(-1)[: len(codes)]


def _blocks(values: Tensor) -> Tensor:
    """As [blocks, 256], the last filled up with zeros; a view where there is nothing to fill."""
    missing = -len(values) % AdamW8.BLOCK
    return (F.pad(values, (0, missing)) if missing else values).view(-1, AdamW8.BLOCK)
