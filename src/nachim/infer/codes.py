"""Keys and values in eight bits and in four.

Eight bits: each head of a token has a step of its own. Four bits, two values a byte: values have a step a token and
head; keys a step and an offset a channel, over the tokens of a group, because what is large in keys is a few channels
of all tokens (KIVI, arXiv 2402.02750, sec. 3). Steps are powers of 2^(1/10), so that one byte says which. Everything is
sums, products and roundings of single values: the codes of a token depend on nothing but its group.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 2.0 ** ((torch.arange(256, dtype=torch.float64) - 180) / 10)
"""What a byte of a step means: 4e-6 to 181."""
MOST = {8: 127, 4: 7}
"""The largest code of values whose codes lie evenly about 0."""


def steps(codes: Tensor) -> Tensor:
    """The steps that bytes stand for, fp32."""
    return STEPS.to(codes.device, torch.float32)[codes.int()]


def step_codes(wanted: Tensor) -> Tensor:
    """Bytes of the smallest steps that are not below `wanted`."""
    table = STEPS.to(wanted.device, torch.float32)
    return torch.bucketize(wanted, table).clamp(max=len(STEPS) - 1).to(torch.uint8)


def by_token(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes [..., E] (int8) of values, evenly about 0, and the bytes of their steps [...], one for E values."""
    found = step_codes(x.abs().amax(-1) / MOST[bits])
    codes = (x / steps(found)[..., None]).round().clamp(-MOST[bits], MOST[bits])
    return codes.to(torch.int8), found


def by_channel(x_SKE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 to 15 [S, K, E] (uint8) of a group of S tokens; of each channel [K, E] a step's byte and an offset.

    A value is (code + offset) times step; an offset is a whole number of one byte.
    """
    low_KE, high_KE = x_SKE.amin(0), x_SKE.amax(0)
    # wide enough for 15 steps from the lowest to the highest, and for an offset that one byte can say
    found = step_codes(torch.maximum((high_KE - low_KE) / 15, torch.maximum(low_KE.abs(), high_KE.abs()) / 127))
    step_KE = steps(found)
    offset_KE = (low_KE / step_KE).round().clamp(-128, 127)
    codes = ((x_SKE / step_KE).round() - offset_KE).clamp(0, 15)
    return codes.to(torch.uint8), found, offset_KE.to(torch.int8)


def paired(codes: Tensor) -> Tensor:
    """Codes 0 to 15 [..., E] two a byte, [..., E/2]: the first half of the channels in the lower bits."""
    low, high = codes.to(torch.uint8).chunk(2, -1)
    return low | high << 4


def unpaired(pairs: Tensor) -> Tensor:
    """Codes 0 to 15 [..., E] of bytes [..., E/2]."""
    return torch.cat((pairs & 15, pairs >> 4), -1)
