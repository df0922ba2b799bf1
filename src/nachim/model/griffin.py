"""Griffin's recurrent block: channels that each keep one value, under gates that the token sets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nachim.model.block import Memory
from nachim.model.build import build
from nachim.model.chunks import wide
from nachim.model.convolution import Convolution
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import RGLRU

SHARPNESS = 8.0
"""c of arXiv 2402.19427, eq. 3: a fully open gate takes the decay to this power."""
LEAST = 2.5e-7
"""Below this 1 - decay^2 counts as this: its root's gradient is then 1000 at most."""
STRIDE = 16
"""Tokens of a chunk: chunks advance side by side, then each is told what stood before it."""


class RGLRUModule(nn.Module):
    """out(gelu(gate) * h), h_t = a_t h_(t-1) + sqrt(1 - a_t^2) i_t x_t, x from a convolution (2402.19427, eq. 1-4).

    The first token of a document, which has nothing before it, is taken whole: sqrt(1 - a^2) is 1 there.
    """

    def __init__(self, part: RGLRU, d_model: int) -> None:
        super().__init__()
        self.gated = nn.Linear(d_model, 2 * part.d_rnn)
        self.convolution = Convolution(part.d_rnn, part.d_conv)
        self.gates = BlockLinear(part.n_blocks, part.d_rnn // part.n_blocks)
        self.log_rate = nn.Parameter(torch.empty(part.d_rnn))
        self.out = nn.Linear(part.d_rnn, d_model)

    def draw(self, generator: torch.Generator) -> None:
        """Decays of fully open gates begin uniform in (0.9, 0.999) (arXiv 2402.19427, sec. 2.4)."""
        decay_R = torch.empty_like(self.log_rate).uniform_(0.9, 0.999, generator=generator)
        with torch.no_grad():
            self.log_rate.copy_((-decay_R.log() / SHARPNESS).expm1().log())  # the inverse of softplus

    def forward(self, x_BTD: Tensor, frame: Frame, position: PositionModule, memory: Memory | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]; the state [B, R] and the convolution's past stay in `memory`."""
        gate_BTR, x_BTR = self.gated(x_BTD).chunk(2, -1)
        x_BTR = self.convolution(x_BTR, frame, memory)
        input_BTR, open_BTR = (wide(gate).sigmoid() for gate in self.gates(x_BTR))
        log_decay_BTR = -SHARPNESS * F.softplus(wide(self.log_rate)) * open_BTR
        scale_BTR = (-(2 * log_decay_BTR).expm1()).clamp_min(LEAST).sqrt()
        decay_BTR = log_decay_BTR.exp()
        state_BR = None if memory is None else memory.get("state")
        begins_BT1 = begins(frame)
        if begins_BT1 is not None:
            scale_BTR = torch.where(begins_BT1, 1.0, scale_BTR)
            decay_BTR = decay_BTR * ~begins_BT1
        if state_BR is None:
            state_BR = decay_BTR.new_zeros(decay_BTR[:, 0].shape)
        h_BTR = Scan.apply(decay_BTR, wide(x_BTR) * input_BTR * scale_BTR, state_BR)
        if memory is not None:
            memory["state"] = h_BTR[:, -1].clone()
        return self.out(F.gelu(gate_BTR, approximate="tanh") * h_BTR.to(x_BTD.dtype))


def begins(frame: Frame) -> Tensor | None:
    """Which new tokens have nothing before them: [B or 1, T, 1]; None where all have."""
    if frame.begins_BT is not None:
        return frame.begins_BT[..., None]
    if frame.start:
        return None
    return frame.once("first", lambda: torch.arange(frame.T, device=frame.device)[None, :, None] == 0)


class BlockLinear(nn.Module):
    """Two projections of every block of channels to as many: [B, T, R] to two of the same."""

    def __init__(self, n_blocks: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * n_blocks, width, width))
        self.bias = nn.Parameter(torch.empty(2 * n_blocks * width))

    def forward(self, x_BTR: Tensor) -> tuple[Tensor, Tensor]:
        """Both projections of the last axis."""
        twice, width, _ = self.weight.shape
        weight_2XOI = self.weight.unflatten(0, (2, twice // 2))
        y_BT2XO = torch.einsum("btxi,kxoi->btkxo", x_BTR.unflatten(-1, (-1, width)), weight_2XOI)
        first, second = (y_BT2XO.flatten(2) + self.bias).chunk(2, -1)
        return first, second


class Scan(torch.autograd.Function):
    """h_t = a_t h_(t-1) + x_t over [B, T, R], from a state [B, R]; the backward pass is the same scan, from the end."""

    @staticmethod
    def forward(ctx: Any, decay_BTR: Tensor, x_BTR: Tensor, state_BR: Tensor) -> Tensor:
        h_BTR = scan(decay_BTR, x_BTR, state_BR)
        ctx.save_for_backward(decay_BTR, h_BTR, state_BR)
        return h_BTR

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay_BTR, h_BTR, state_BR = ctx.saved_tensors
        after_BTR = torch.cat((decay_BTR[:, 1:], torch.zeros_like(decay_BTR[:, :1])), 1)
        grad_x_BTR = scan(after_BTR.flip(1), grad_BTR.flip(1), torch.zeros_like(state_BR)).flip(1)
        before_BTR = torch.cat((state_BR[:, None], h_BTR[:, :-1]), 1)
        return grad_x_BTR * before_BTR, grad_x_BTR, grad_x_BTR[:, 0] * decay_BTR[:, 0]


def scan(decay_BTR: Tensor, x_BTR: Tensor, state_BR: Tensor) -> Tensor:
    """h [B, T, R] of h_t = decay_t h_(t-1) + x_t, h_0 from the state: STRIDE multiply-adds a level, log T levels.

    Chunks find their last value as if nothing stood before them, those values are scanned in turn, and the chunks run
    once more from what stood before. Only products of decays are formed: nothing overflows.
    """
    T = x_BTR.shape[1]
    if T <= STRIDE:
        return _advance(decay_BTR[:, None], x_BTR[:, None], state_BR[:, None])[:, 0]
    missing = -T % STRIDE
    if missing:
        decay_BTR, x_BTR = (F.pad(part, (0, 0, 0, missing)) for part in (decay_BTR, x_BTR))
    decay_BNCR, x_BNCR = (part.unflatten(1, (-1, STRIDE)) for part in (decay_BTR, x_BTR))
    last_BNR, passed_BNR = x_BNCR[:, :, 0].clone(), decay_BNCR[:, :, 0].clone()
    for t in range(1, STRIDE):
        torch.addcmul(x_BNCR[:, :, t], decay_BNCR[:, :, t], last_BNR, out=last_BNR)
        passed_BNR *= decay_BNCR[:, :, t]
    after_BNR = scan(passed_BNR, last_BNR, state_BR)
    before_BNR = torch.cat((state_BR[:, None], after_BNR[:, :-1]), 1)
    return _advance(decay_BNCR, x_BNCR, before_BNR).flatten(1, 2)[:, :T]


def _advance(decay_BNCR: Tensor, x_BNCR: Tensor, state_BNR: Tensor) -> Tensor:
    """The recurrence itself, all chunks side by side."""
    h_BNCR = torch.empty_like(x_BNCR)
    for t in range(x_BNCR.shape[2]):
        state_BNR = torch.addcmul(x_BNCR[:, :, t], decay_BNCR[:, :, t], state_BNR, out=h_BNCR[:, :, t])
    return h_BNCR


@build.register
def _(part: RGLRU, d_model: int) -> nn.Module:
    return RGLRUModule(part, d_model)
