"""Normalisation modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nachim.model.build import build
from nachim.model.fused import Norm, ready
from nachim.spec import LayerNorm, RMSNorm


class RMSNormModule(nn.RMSNorm):
    """torch's RMSNorm, in one pass where a CPU trains it in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """The last axis normalised."""
        return Norm.apply(x, self.weight, self.eps) if ready(x, self.weight) else super().forward(x)


class OffsetRMSNorm(nn.Module):
    """RMSNorm whose weight is the gain's distance from 1, computed in fp32 as Gemma does."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """The last axis normalised."""
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1 + self.weight.float())).to(x.dtype)

    def draw(self, generator: torch.Generator) -> None:
        """Begin with a gain of 1."""
        nn.init.zeros_(self.weight)


def rms_norm(width: int, eps: float, offset: bool = False) -> nn.Module:
    """The module of an RMSNorm over a last axis of `width`."""
    return OffsetRMSNorm(width, eps) if offset else RMSNormModule(width, eps=eps)


@build.register
def _(part: RMSNorm, d_model: int) -> nn.Module:
    return rms_norm(d_model, part.eps, part.offset)


@build.register
def _(part: LayerNorm, d_model: int) -> nn.Module:
    return nn.LayerNorm(d_model, eps=part.eps, bias=part.bias)
