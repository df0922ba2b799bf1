"""Cross-entropy from the stream, without all logits at once.

torch's `linear_cross_entropy` does the like; but with bf16 weights it rounds the loss to bf16, and it knows no cap.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nachim.model.fused import CrossEntropy, ready

NONE = -100
"""The target of a token that has none: cross-entropy leaves it out."""
WHOLE = 2**24
"""The most logits, tokens times vocabulary, that are made at once: 64 MiB in fp32. More are made in chunks."""
CHUNK = 2**21
"""Logits of one chunk."""


def head_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float | None = None) -> Tensor:
    """Mean cross-entropy, nat/token and fp32, of logits `x_ND weight_VD^T`; 0 where every target is `NONE`.

    Logits l are bounded to cap tanh(l / cap) where there is a `cap`. Up to `WHOLE` of them are made at once, and the
    result is that of torch's own functions to the bit, or to rounding where a CPU trains in fp32 (see `model.fused`);
    more are made a `CHUNK` at a time, equal to rounding. Which it is follows from the shapes and the machine alone.
    """
    known = (targets_N != NONE).sum().clamp(min=1)
    if x_ND.shape[0] * weight_VD.shape[0] <= WHOLE:
        if cap is None and ready(x_ND, weight_VD):
            return CrossEntropy.apply(x_ND, weight_VD, targets_N) / known
        logits_NV = capped(F.linear(x_ND, weight_VD), cap).float()
        return F.cross_entropy(logits_NV, targets_N, ignore_index=NONE, reduction="sum") / known
    wanted = torch.is_grad_enabled() and (x_ND.requires_grad or weight_VD.requires_grad)
    return _InChunks.apply(x_ND, weight_VD, targets_N, cap, wanted) / known


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits within +-`cap`, if there is one (arXiv 2408.00118, sec. 2)."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


class _InChunks(torch.autograd.Function):
    """The sum of cross-entropies. A chunk's gradients are taken while its logits stand, so that none is made twice."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float | None, wanted: bool
    ) -> Tensor:
        rows = max(1, CHUNK // weight_VD.shape[0])
        grad_ND = torch.empty_like(x_ND) if wanted else None
        grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wanted else None
        nats = []
        for begin in range(0, len(x_ND), rows):
            part = slice(begin, begin + rows)
            x_RD, targets_R = x_ND[part], targets_N[part]
            logits_RV = capped(F.linear(x_RD, weight_VD), cap).float()
            share_RV = F.log_softmax(logits_RV, -1)
            nats.append(F.nll_loss(share_RV, targets_R, ignore_index=NONE, reduction="sum"))
            if not wanted:
                continue
            known_R1 = (targets_R != NONE)[:, None]
            share_RV.exp_().scatter_add_(1, targets_R.clamp(min=0)[:, None], -torch.ones_like(share_RV[:, :1]))
            if cap is not None:
                share_RV.mul_(1 - (logits_RV / cap).square_())
            share_RV = share_RV.to(weight_VD.dtype)
            torch.mul(share_RV @ weight_VD, known_R1, out=grad_ND[part])
            _add_product(grad_VD, share_RV.mT, x_RD * known_R1)
            del logits_RV, share_RV  # or they would stand beside the next chunk's
        ctx.grads, ctx.dtype = (grad_ND, grad_VD), weight_VD.dtype
        return torch.stack(nats).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # scaled only now: the gradient of a mean over many tokens would vanish in fp16
        (grad_ND, grad_VD), ctx.grads = ctx.grads, None  # nothing stays where the graph outlives this
        return grad_ND.mul_(scale), grad_VD.mul_(scale).to(ctx.dtype), None, None, None


def _add_product(sum_VD: Tensor, a_VR: Tensor, b_RD: Tensor) -> None:
    """Add a b to an fp32 sum, without a tensor between where the precisions are the same."""
    if a_VR.dtype == sum_VD.dtype:
        sum_VD.addmm_(a_VR, b_RD)
    else:
        sum_VD.add_(a_VR @ b_RD)
