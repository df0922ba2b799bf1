"""RMSNorm as torch computes it."""

from __future__ import annotations

from torch import nn

from nachim.model.build import build
from nachim.spec import RMSNorm


@build.register
def _(part: RMSNorm, d_model: int) -> nn.Module:
    return nn.RMSNorm(d_model, eps=part.eps)
