"""Dense feed-forward modules."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.build import build
from nachim.model.fused import Gate, ready
from nachim.spec import MLP, Gated, GeGLU, SwiGLU

Activation = Callable[[Tensor], Tensor]
gelu_tanh = functools.partial(F.gelu, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """The square of ReLU (arXiv 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "relu2": relu2, "gelu": F.gelu, "gelu_tanh": gelu_tanh}


class MLPModule(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, part: MLP, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, part.d_ff, bias=part.bias)
        self.down = nn.Linear(part.d_ff, d_model, bias=part.bias)
        self.activation = ACTIVATIONS[part.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.down(self.activation(self.up(x_BTD)))


class GatedModule(nn.Module):
    """down(activation(gate(x)) * up(x)); gate and up are one matrix: small widths then make one larger product."""

    def __init__(self, part: Gated, d_model: int, activation: Activation) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * part.d_ff, bias=part.bias)
        self.down = nn.Linear(part.d_ff, d_model, bias=part.bias)
        self.activation = activation

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        both_BT2F = self.gate_up(x_BTD)
        if self.activation is F.silu and ready(both_BT2F):
            return self.down(Gate.apply(both_BT2F))
        gate_BTF, up_BTF = both_BT2F.chunk(2, -1)
        return self.down(self.activation(gate_BTF) * up_BTF)


@build.register
def _(part: MLP, d_model: int) -> nn.Module:
    return MLPModule(part, d_model)


@build.register
def _(part: SwiGLU, d_model: int) -> nn.Module:
    return GatedModule(part, d_model, F.silu)


@build.register
def _(part: GeGLU, d_model: int) -> nn.Module:
    return GatedModule(part, d_model, F.gelu if part.exact else gelu_tanh)
