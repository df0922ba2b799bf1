"""Quantised matrices as matrices of one number a weight, so that what is done to any weight can be done to them.

Other formats cut, join and turn rows of our matrices. The same is done to the values that codes stand for, to their
scales and to what a code of 0 stands for; from these three the codes are found again, wherever they went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nachim.model.quantized.grid import MIDDLE, Coded
from nachim.spec import NF4, Int4, UserError
from nachim.spec.quantize import Scheme


class Spread(NamedTuple):
    """All tensors of a quantised model, by name; of what was kept, `scales` and `lows` hold NaN."""

    scheme: Scheme
    values: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]
    lows: Mapping[str, Tensor]
    """What a code of 0 stands for; of Int8, whose codes have signs, nothing."""


def spread(scheme: Scheme, coded: Mapping[str, Sequence[Coded]], kept: Mapping[str, Tensor], to: str) -> Spread:
    """The tensors of a quantised model. Raises UserError for what the format `to` cannot say."""
    if isinstance(scheme, NF4):
        raise UserError(f"{to} has no place for NF4: quantise to int8 or int4")
    unknown = {name: torch.full_like(tensor, torch.nan, dtype=torch.float32) for name, tensor in kept.items()}
    found = Spread(scheme, dict(kept), dict(unknown), dict(unknown))
    for name, each in coded.items():
        if any(one.divisor_I is not None for one in each):
            raise UserError(f"what {name} reads is divided first, which {to} cannot say: quantise by rtn or gptq")
        three = zip(*((one.decode(), *_shared(one)) for one in each), strict=True)
        for tensors, parts in zip((found.values, found.scales, found.lows), three, strict=True):
            tensors[name] = parts[0] if len(parts) == 1 else torch.stack(parts)
    return found


def _shared(coded: Coded) -> tuple[Tensor, Tensor]:
    """For each weight [O, I] its scale, and what a code of 0 stands for."""
    scale_OG, zero_OG = coded.grid.scale_OG, coded.grid.zero_OG
    middle = MIDDLE if isinstance(coded.grid.scheme, Int4) else 0
    low_OG = -scale_OG * (middle if zero_OG is None else zero_OG)
    width = coded.codes_OI.shape[1] // scale_OG.shape[1]
    return scale_OG.repeat_interleave(width, 1), low_OG.repeat_interleave(width, 1)
