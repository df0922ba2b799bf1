"""Mixtures of experts: every token is worked on by the experts its router chose, and none is dropped."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.build import build
from nachim.model.router import RouterModule
from nachim.spec import MoE, SwiGLU

ALIGNED_BYTES = 16
"""Rows of matrices must begin at multiples of this for the grouped kernel."""
SHARPNESS = 1.702
"""Of gpt-oss's gate: with it x sigmoid(x) is near GELU (arXiv 1606.08415, sec. 2)."""


class Stack(nn.Module):
    """A stack of matrices [X, out, in], one an expert, and of biases [X, out]."""

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        nn.init.normal_(self.weight, std=inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(experts, outputs)) if bias else None

    def forward(self, x_RI: Tensor, load_X: Tensor) -> Tensor:
        """Rows [R, in], sorted by expert, of which the first `load_X[0]` are the first expert's, to [R, out]."""
        y_RO = self.multiplied(x_RI, load_X)
        if self.bias is None:
            return y_RO
        return y_RO + self.bias.repeat_interleave(load_X, 0, output_size=len(y_RO))

    def multiplied(self, x_RI: Tensor, load_X: Tensor) -> Tensor:
        """The rows times their matrices.

        One grouped kernel on a GPU that has one for these weights; elsewhere one multiplication for each expert that
        has rows, which on a CPU is as fast as the grouped kernel and faster than padding all to the fullest.
        """
        if x_RI.is_cuda and x_RI.dtype == torch.bfloat16 and self.aligned():
            return self.grouped(x_RI, load_X)
        loads = load_X.tolist()
        parts = [
            F.linear(rows, weight)
            for rows, weight in zip(x_RI.split(loads), self.weight.unbind(0), strict=True)
            if len(rows)
        ]
        return torch.cat(parts)

    def grouped(self, x_RI: Tensor, load_X: Tensor) -> Tensor:
        """The same by torch's grouped kernel."""
        ends_X = load_X.cumsum(0).to(torch.int32)
        return torch._grouped_mm(x_RI.contiguous(), self.weight.mT, offs=ends_X)

    def aligned(self) -> bool:
        """Whether the grouped kernel takes matrices of these widths."""
        return all(width * self.weight.element_size() % ALIGNED_BYTES == 0 for width in self.weight.shape[1:])


class ExpertsModule(nn.Module):
    """SwiGLU experts, or those of gpt-oss, gate and up as one matrix each."""

    def __init__(self, part: MoE, d_model: int) -> None:
        super().__init__()
        self.gate_up = Stack(part.experts, d_model, 2 * part.d_ff, part.bias)
        self.down = Stack(part.experts, part.d_ff, d_model, part.bias)
        self.limit = part.limit

    def forward(self, x_RD: Tensor, load_X: Tensor) -> Tensor:
        """Rows sorted by expert, `load_X` of them for each, to the experts' answers [R, D]."""
        gate_RF, up_RF = self.gate_up(x_RD, load_X).chunk(2, -1)
        hidden_RF = F.silu(gate_RF) * up_RF if self.limit is None else clipped(gate_RF, up_RF, self.limit)
        return self.down(hidden_RF, load_X)


def clipped(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """(up + 1) * gate * sigmoid(1.702 gate), gate clipped from above and up on both sides (gpt-oss)."""
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * (gate * torch.sigmoid(SHARPNESS * gate))


class MoEModule(nn.Module):
    """Router, experts, and the experts that serve every token."""

    def __init__(self, part: MoE, d_model: int) -> None:
        super().__init__()
        self.part = part
        self.router = RouterModule(part, d_model)
        self.experts = ExpertsModule(part, d_model)
        if part.shared:
            self.shared = build(SwiGLU(d_ff=part.shared * part.d_ff), d_model)
        if part.shared_gate:
            self.shared_gate = nn.Linear(d_model, 1, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        gates_BTA, chosen_BTA = self.router(x_BTD)
        y_BTD = self.routed(x_BTD, gates_BTA.to(x_BTD.dtype), chosen_BTA)
        if not self.part.shared:
            return y_BTD
        shared_BTD = self.shared(x_BTD)
        return y_BTD + (self.shared_gate(x_BTD).sigmoid() * shared_BTD if self.part.shared_gate else shared_BTD)

    def routed(self, x_BTD: Tensor, gates_BTA: Tensor, chosen_BTA: Tensor) -> Tensor:
        """What the chosen experts answer, each times its gate, added up.

        A token becomes one row for each of its experts; rows are sorted by expert, and back.
        """
        order_R = chosen_BTA.flatten().argsort(stable=True)
        back_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=order_R.device))
        load_X = torch.bincount(chosen_BTA.flatten(), minlength=self.part.experts)
        x_RD = Sorted.apply(x_BTD.flatten(0, 1), order_R, back_R, self.part.active)
        y_BTAD = Sorted.apply(self.experts(x_RD, load_X), back_R, order_R, 1).view(*chosen_BTA.shape, -1)
        return (y_BTAD * gates_BTA[..., None]).sum(-2)


class Sorted(torch.autograd.Function):
    """Rows, each as many times as there are `copies`, in another order. Its gradient is gathered too, by the inverse of
    that order, and added up over copies: scattering would add in any order."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_R: Tensor, back_R: Tensor, copies: int) -> Tensor:
        """[N, D] to [N * copies, D]; copy c of row n counts as row n * copies + c, and `back_R` inverts `order_R`."""
        ctx.save_for_backward(back_R)
        ctx.copies = copies
        return x_ND[order_R // copies]

    @staticmethod
    def backward(ctx: Any, gradient_RD: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradients of a row's copies, added up."""
        (back_R,) = ctx.saved_tensors
        gradient_RD = gradient_RD[back_R]
        if ctx.copies == 1:
            return gradient_RD, None, None, None
        return gradient_RD.unflatten(0, (-1, ctx.copies)).sum(1), None, None, None


@build.register
def _(part: MoE, d_model: int) -> nn.Module:
    return MoEModule(part, d_model)
