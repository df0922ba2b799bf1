"""Mamba-2: state-space duality (arXiv 2405.21060), in chunks, or a token at a time.

Axes beside the house's: G groups of R heads, E values of a state's input and readout, F channels of a head, N chunks
of C tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nachim.model.block import Memory
from nachim.model.build import build
from nachim.model.chunks import in_chunks, states, wide
from nachim.model.convolution import Convolution
from nachim.model.frame import Frame
from nachim.model.mamba import draw_steps
from nachim.model.position import PositionModule
from nachim.spec import Mamba2


class Mamba2Module(nn.Module):
    """[B, T, D] to [B, T, D] through heads with a decay each; inputs and readouts of states are shared in groups.

    `memory` keeps "convolution" [B, d_conv - 1, channels] and "state" [B, G, E, R, F].
    """

    def __init__(self, part: Mamba2, d_model: int) -> None:
        super().__init__()
        self.part = part
        convolved = part.d_inner + part.shared
        self.rows = (part.d_inner, convolved, part.n_heads)
        self.enter = nn.Linear(d_model, sum(self.rows), bias=False)
        self.convolution = Convolution(convolved, part.d_conv)
        self.dt_bias = nn.Parameter(torch.empty(part.n_heads))
        self.A_log = nn.Parameter(torch.empty(part.n_heads))
        self.D = nn.Parameter(torch.empty(part.n_heads))
        self.norm = GroupedRMSNorm(part.d_inner, part.n_groups, part.eps)
        self.out = nn.Linear(part.d_inner, d_model, bias=False)

    def draw(self, generator: torch.Generator) -> None:
        """Decay rates uniform in 1 to 16, steps log-uniform in 0.001 to 0.1, as the paper's own implementation."""
        nn.init.uniform_(self.A_log, 1, 16, generator=generator)
        with torch.no_grad():
            self.A_log.log_()
        draw_steps(self.dt_bias, generator)

    def forward(self, x_BTD: Tensor, frame: Frame, position: PositionModule, memory: Memory | None = None) -> Tensor:
        """[B, T, D] to the same; a state begins again with each document, and order is told by it alone."""
        part = self.part
        gate_BTI, convolved, step_BTH = self.enter(x_BTD).split(self.rows, -1)
        convolved = F.silu(self.convolution(convolved, frame, memory))
        half = part.shared // 2
        x_BTI, write, read = convolved.split((part.d_inner, half, half), -1)
        step_BTH = F.softplus(wide(step_BTH) + wide(self.dt_bias))
        log_decay_BTH = -wide(self.A_log).exp() * step_BTH
        x_BTHF = x_BTI.unflatten(-1, (part.n_heads, part.d_head))
        heads = (part.n_groups, part.n_heads // part.n_groups)
        v_BTGRF = (wide(x_BTHF) * step_BTH[..., None]).unflatten(2, heads)
        write_BTGE, read_BTGE = (wide(values).unflatten(-1, (part.n_groups, -1)) for values in (write, read))
        given = (v_BTGRF, log_decay_BTH.unflatten(-1, heads), write_BTGE, read_BTGE)
        y_BTHF = self._mixed(given, frame, memory).flatten(2, 3).to(x_BTD.dtype)
        y_BTI = torch.addcmul(y_BTHF, x_BTHF, self.D[:, None]).flatten(2)
        return self.out(self.norm(y_BTI * F.silu(gate_BTI)))

    def _mixed(self, given: tuple[Tensor, ...], frame: Frame, memory: Memory | None) -> Tensor:
        v_BTGRF, write_BTGE = given[0], given[2]
        B, _, G, R, width = v_BTGRF.shape
        state_BGERF = None if memory is None else memory.get("state")
        if state_BGERF is None:
            state_BGERF = v_BTGRF.new_zeros(B, G, write_BTGE.shape[-1], R, width)
        if frame.T == 1:
            y_BTGRF, new_BGERF = step(*given, wide(state_BGERF), frame)
        else:
            y_BTGRF, new_BGERF = ssd(*given, wide(state_BGERF), frame, self.part.chunk)
        if memory is not None:
            memory["state"] = new_BGERF.to(self.out.weight.dtype)
        return y_BTGRF


class GroupedRMSNorm(nn.Module):
    """RMSNorm of each of `groups` equal parts of the last axis, with a gain for every channel."""

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.groups, self.eps = groups, eps

    def forward(self, x: Tensor) -> Tensor:
        """The last axis normalised."""
        parts = x.unflatten(-1, (self.groups, -1))
        return F.rms_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2) * self.weight


def step(
    v_BTGRF: Tensor,
    log_decay_BTGR: Tensor,
    write_BTGE: Tensor,
    read_BTGE: Tensor,
    state_BGERF: Tensor,
    frame: Frame,
) -> tuple[Tensor, Tensor]:
    """One token (T = 1) by the recurrence of `ssd`: its readout [B, 1, G, R, F], and the new state."""
    decay_BGR = log_decay_BTGR[:, 0].exp()
    if frame.begins_BT is not None:
        decay_BGR = decay_BGR * ~frame.begins_BT[..., None]
    written_BGEI = write_BTGE[:, 0, :, :, None] @ v_BTGRF[:, 0].flatten(2)[:, :, None]
    state_BGERF = torch.addcmul(written_BGEI.view_as(state_BGERF), decay_BGR[:, :, None, :, None], state_BGERF)
    y_BG1I = read_BTGE[:, 0, :, None] @ state_BGERF.flatten(3)
    return y_BG1I.view_as(v_BTGRF), state_BGERF


def ssd(
    v_BTGRF: Tensor,
    log_decay_BTGR: Tensor,
    write_BTGE: Tensor,
    read_BTGE: Tensor,
    state_BGERF: Tensor,
    frame: Frame,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """S_t = decay_t S_(t-1) + write_t v_t^T and y_t = read_t S_t, in chunks of at most `chunk` (2405.21060, sec. 6).

    Chunks are made as equal as they can be. Gives y [B, T, G, R, F] and the state after the last token.
    """
    count = -(-frame.T // chunk)
    chunks = in_chunks(frame, -(-frame.T // count))
    v_BGNCI, log_decay_BGNCR, write_BGNCE, read_BGNCE = (
        chunks.split(tensor.transpose(1, 2)) for tensor in (v_BTGRF.flatten(3), log_decay_BTGR, write_BTGE, read_BTGE)
    )
    heads = v_BTGRF.shape[3:]
    v_BGNCRF = v_BGNCI.unflatten(-1, heads)
    passed_BGNCR = log_decay_BGNCR.double().cumsum(3)
    scores_BGNCC = (read_BGNCE @ write_BGNCE.mT).masked_fill(~chunks.met, 0)
    inside_BGNRCF = _Weighed.apply(scores_BGNCC, passed_BGNCR.mT) @ v_BGNCRF.transpose(3, 4)
    last_BGN1R = passed_BGNCR[:, :, :, -1:]
    leaves_BGNCR, total_BGN1R, enters_BGNCR = (
        passed.exp().to(v_BTGRF.dtype) for passed in (last_BGN1R - passed_BGNCR, last_BGN1R, passed_BGNCR)
    )
    written_BGNEI = write_BGNCE.mT @ (v_BGNCRF * chunks.written(leaves_BGNCR)[..., None]).flatten(4)
    before_BGNERF, state_BGERF = states(
        written_BGNEI.unflatten(-1, heads), chunks.carried(total_BGN1R)[..., None], state_BGERF
    )
    read_BGNCRF = (read_BGNCE @ before_BGNERF.flatten(4)).unflatten(-1, heads)
    y_BGNCRF = torch.addcmul(inside_BGNRCF.transpose(3, 4), read_BGNCRF, chunks.read(enters_BGNCR)[..., None])
    return chunks.join(y_BGNCRF).transpose(1, 2), state_BGERF


class _Weighed(torch.autograd.Function):
    """Scores [B, G, N, C, C] of a group times exp(passed_t - passed_s) of each of its heads: [B, G, N, R, C, C].

    Scores must be 0 where s is after t. Sums of logarithms are subtracted in fp64: in fp32, a chunk in which a head has
    forgotten much would lose the digits of what it then keeps. The backward pass needs no more than the two factors.
    """

    @staticmethod
    def forward(ctx: Any, scores_BGNCC: Tensor, passed_BGNRC: Tensor) -> Tensor:
        passed_BGNRC = passed_BGNRC.contiguous()
        kept = (passed_BGNRC[..., None] - passed_BGNRC[..., None, :]).to(scores_BGNCC.dtype).clamp_(max=0).exp_()
        weighed = kept * scores_BGNCC[:, :, :, None]
        ctx.save_for_backward(kept, weighed)
        return weighed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        kept, weighed = ctx.saved_tensors
        product = grad * weighed
        passed_grad = product.sum(-1) - product.sum(-2)
        return torch.mul(grad, kept, out=product).sum(3), passed_grad.double()


@build.register
def _(part: Mamba2, d_model: int) -> nn.Module:
    return Mamba2Module(part, d_model)
