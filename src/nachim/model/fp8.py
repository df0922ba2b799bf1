"""Products in 8 bits: the matrices of attention and of dense feed-forwards; all else stays in the model's precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nachim.model.attention import AttentionModule
from nachim.model.mla import MLAModule
from nachim.model.mlp import GatedModule, MLPModule
from nachim.spec import UserError

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
"""What values and weights are rounded to, and what gradients are, which need more range (arXiv 2209.05433, sec. 3)."""
PARTS = (AttentionModule, MLAModule, MLPModule, GatedModule)
"""Whose matrices are multiplied in 8 bits. Norms, softmax, states and their step sizes, routers, experts, embedding and
head are not: as in DeepSeek-V3 but for the experts (arXiv 2412.19437, sec. 3.3.1)."""
MULTIPLE = 16
"""Kernels take matrices whose every width is a multiple of this."""


def in_8_bits(model: nn.Module) -> None:
    """Have the matrices of `PARTS` multiply in 8 bits; the weights stay as and where they are.

    Raises UserError when the model has no such matrix.
    """
    found = [
        matrix
        for module in model.modules()
        if isinstance(module, PARTS)
        for matrix in module.children()
        if isinstance(matrix, nn.Linear) and not any(width % MULTIPLE for width in matrix.weight.shape)
    ]
    if not found:
        raise UserError(
            "precision 'fp8' is for the matrices of attention and of dense feed-forwards whose widths are multiples of "
            f"{MULTIPLE}, and this model has none: train it in bf16"
        )
    for matrix in found:
        matrix.__class__ = Linear8


class Linear8(nn.Linear):
    """A matrix that is multiplied by in 8 bits, in the forward pass and for both gradients."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., F]; as many tokens as kernels cannot take in 8 bits go the plain way."""
        rows = x.numel() // x.shape[-1]
        if rows % MULTIPLE:
            return super().forward(x)
        y = Product8.apply(x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


class Product8(torch.autograd.Function):
    """x W^T, every operand of it and of its gradients rounded to 8 bits with one scale of its own.

    Operands are kept for the backward pass as they came, and rounded again there: a gradient sums over another axis.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_FD: Tensor) -> Tensor:
        """[N, D] and [F, D] to [N, F]."""
        ctx.save_for_backward(x_ND, weight_FD)
        return product(x_ND, weight_FD, E4M3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both."""
        x_ND, weight_FD = ctx.saved_tensors
        return product(gradient_NF, weight_FD.t(), E5M2), product(gradient_NF.t(), x_ND.t(), E5M2)


def product(a_NK: Tensor, b_MK: Tensor, kind: torch.dtype) -> Tensor:
    """a b^T [N, M] in the precision of `a_NK`, of a rounded to `kind` and b to e4m3."""
    (a_NK8, a_scale), (b_MK8, b_scale) = eighth(a_NK, kind), eighth(b_MK, E4M3)
    return torch._scaled_mm(a_NK8, b_MK8.t(), scale_a=a_scale, scale_b=b_scale, out_dtype=a_NK.dtype)


def eighth(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` over its scale in 8 bits, its rows one after another, and the scale, fp32: the largest value becomes the
    largest there is."""
    scale = x.abs().amax().float().clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(kind).max
    return (x.contiguous() / scale).to(kind), scale
