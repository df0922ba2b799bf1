"""What keeps the number of threads out of the weights, beside MKL's strict mode (`nachim.train`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nachim.train.rates import on_threads

ROWS, COLUMNS = 1024, 32
"""Of two matrices whose product MKL cuts along the rows where it may."""


def even_norms(model: nn.Module) -> None:
    """Let the gradients of a model's LayerNorms be the same bits on any number of threads."""
    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.__class__ = EvenLayerNorm


def products_are_even() -> bool:
    """Whether a sum over many rows is the same bits on one thread and on those that torch has."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, ROWS, COLUMNS, generator=generator)
    found = one.mT @ other
    with on_threads(1):
        return torch.equal(found, one.mT @ other)


class EvenLayerNorm(nn.LayerNorm):
    """LayerNorm whose gains get their gradients from one thread, where several would add up rows of their own first."""

    def forward(self, x: Tensor) -> Tensor:
        """The last axis normalised."""
        if x.is_cuda or torch.get_num_threads() == 1 or not torch.is_grad_enabled():
            return super().forward(x)
        return _OneByOne.apply(x, self.weight, self.bias, self.eps)


class _OneByOne(torch.autograd.Function):
    """torch's LayerNorm, its backward pass on one thread."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        y, mean, scale = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], bias is not None and ctx.needs_input_grad[2]]
        with on_threads(1):
            kernel = torch.ops.aten.native_layer_norm_backward
            return *kernel(grad, x, weight.shape, mean, scale, weight, bias, wanted), None
