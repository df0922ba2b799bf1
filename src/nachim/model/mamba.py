"""Mamba: a selective state space (arXiv 2312.00752), scanned in short pieces, or a token at a time.

Axes beside the house's: I inner channels, N values of a channel's state.
"""

from __future__ import annotations

import math
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
from nachim.model.norm import rms_norm
from nachim.model.position import PositionModule
from nachim.spec import Mamba

PIECE = 16
"""Tokens whose states stand in memory at once; the state before each piece is kept for the backward pass."""
CACHED = 1 << 17
"""State values that a core's cache holds: on a CPU, so many are worked on at once. Measured: 1 << 16 to 1 << 18 tie."""


class MambaModule(nn.Module):
    """[B, T, D] to [B, T, D] through `d_inner` channels whose states decay, take in and are read as each token says.

    `memory` keeps "convolution" [B, d_conv - 1, I] and "state" [B, N, I].
    """

    def __init__(self, part: Mamba, d_model: int) -> None:
        super().__init__()
        self.widths = (part.dt_rank, part.d_state, part.d_state)
        self.enter = nn.Linear(d_model, 2 * part.d_inner, bias=False)
        self.convolution = Convolution(part.d_inner, part.d_conv)
        self.select = nn.Linear(part.d_inner, sum(self.widths), bias=False)
        if part.inner_norm:
            self.norms = nn.ModuleList(rms_norm(width, part.eps) for width in self.widths)
        self.step = nn.Linear(part.dt_rank, part.d_inner)
        self.A_log = nn.Parameter(torch.empty(part.d_inner, part.d_state))
        self.D = nn.Parameter(torch.empty(part.d_inner))
        self.out = nn.Linear(part.d_inner, d_model, bias=False)

    def draw(self, generator: torch.Generator) -> None:
        """Decay rates 1 to N, steps log-uniform between 0.001 and 0.1 (arXiv 2312.00752, sec. 3.6)."""
        rates = torch.arange(1, self.A_log.shape[1] + 1, dtype=self.A_log.dtype)
        with torch.no_grad():
            self.A_log.copy_(rates.log().expand_as(self.A_log))
        draw_steps(self.step.bias, generator)
        bound = self.step.in_features**-0.5
        nn.init.uniform_(self.step.weight, -bound, bound, generator=generator)

    def forward(self, x_BTD: Tensor, frame: Frame, position: PositionModule, memory: Memory | None = None) -> Tensor:
        """[B, T, D] to the same; a state begins again with each document, and order is told by it alone."""
        x_BTI, gate_BTI = self.enter(x_BTD).chunk(2, -1)
        x_BTI = F.silu(self.convolution(x_BTI, frame, memory))
        selected = self.select(x_BTI).split(self.widths, -1)
        if hasattr(self, "norms"):
            selected = [norm(values) for norm, values in zip(self.norms, selected, strict=True)]
        low_BTR, write_BTN, read_BTN = selected
        step_BTI = F.softplus(self.step(low_BTR))
        rate_NI = -wide(self.A_log).exp().t()
        y_BTI = self._scanned((x_BTI, step_BTI, rate_NI, write_BTN, read_BTN), frame, memory)
        return self.out(torch.addcmul(y_BTI, x_BTI, self.D) * F.silu(gate_BTI))

    def _scanned(self, given: tuple[Tensor, ...], frame: Frame, memory: Memory | None) -> Tensor:
        dtype = given[0].dtype
        given = tuple(map(wide, given))
        state_BNI = None if memory is None else memory.get("state")
        if frame.T == 1 and state_BNI is not None:
            y_BTI, state_BNI = step(*given, wide(state_BNI), frame.begins_BT)
        else:
            y_BTI, state_BNI = scan(*given, state_BNI, frame.begins_BT)
        if memory is not None:
            memory["state"] = state_BNI.to(dtype)
        return y_BTI.to(dtype)


def draw_steps(bias: Tensor, generator: torch.Generator) -> None:
    """Draw biases whose softplus, the step sizes, are log-uniform between 0.001 and 0.1."""
    low, high = math.log(0.001), math.log(0.1)
    nn.init.uniform_(bias, low, high, generator=generator)
    with torch.no_grad():
        size = bias.exp()
        bias.copy_(size + (-torch.expm1(-size)).log())


def step(
    x_BTI: Tensor,
    step_BTI: Tensor,
    rate_NI: Tensor,
    write_BTN: Tensor,
    read_BTN: Tensor,
    state_BNI: Tensor,
    begins_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token (T = 1) after `state_BNI`: the recurrence of `scan`. Its readout [B, 1, I], and the new state."""
    decay_BNI = (step_BTI * rate_NI).exp()
    if begins_BT is not None:
        decay_BNI = decay_BNI.masked_fill(begins_BT[..., None], 0)
    state_BNI = decay_BNI * state_BNI + write_BTN.transpose(1, 2) * (step_BTI * x_BTI)
    return read_BTN @ state_BNI, state_BNI


def scan(
    x_BTI: Tensor,
    step_BTI: Tensor,
    rate_NI: Tensor,
    write_BTN: Tensor,
    read_BTN: Tensor,
    state_BNI: Tensor | None = None,
    begins_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h_t = exp(step_t rate) h_(t-1) + write_t (step_t x_t) and y_t = read_t h_t (arXiv 2312.00752, eq. 2 and 4).

    `step` is above 0 and `rate` below. Where `begins_BT`, h_(t-1) counts as zero. `state_BNI` stands before the first
    token, zero where None. Gives y [B, T, I] and the last state. Memory for the backward pass: a state every `PIECE`
    tokens; the others are made again.
    """
    B = len(x_BTI)
    if state_BNI is None:
        state_BNI = x_BTI.new_zeros(B, *rate_NI.shape)
    rows = max(1, CACHED // (PIECE * rate_NI.numel())) if x_BTI.device.type == "cpu" else B
    pieces = [
        _Scan.apply(*(None if tensor is None else tensor[first : first + rows] for tensor in batched), rate_NI)
        for first in range(0, B, rows)
        for batched in [(x_BTI, step_BTI, write_BTN, read_BTN, state_BNI.to(x_BTI.dtype), begins_BT)]
    ]
    y, states = zip(*pieces, strict=True)
    return (torch.cat(y), torch.cat(states)) if len(pieces) > 1 else pieces[0]


class _Scan(torch.autograd.Function):
    """`scan` with its own backward pass: left to autograd, every state of every token would be kept, several times."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTI: Tensor,
        step_BTI: Tensor,
        write_BTN: Tensor,
        read_BTN: Tensor,
        state_BNI: Tensor,
        begins_BT: Tensor | None,
        rate_NI: Tensor,
    ) -> tuple[Tensor, Tensor]:
        given = (x_BTI, step_BTI, write_BTN, begins_BT)
        pieces, room, y_BTI = _pieces(x_BTI.shape[1]), _room(x_BTI, rate_NI), torch.empty_like(x_BTI)
        between_PBNI = state_BNI.new_empty(len(pieces) + 1, *state_BNI.shape)
        between_PBNI[0] = state_BNI
        for index, piece in enumerate(pieces):
            _, state_BCNI = _states(given, rate_NI, piece, between_PBNI[index], room)
            y_BTI[:, piece] = (read_BTN[:, piece, None] @ state_BCNI)[:, :, 0]
            between_PBNI[index + 1] = state_BCNI[:, -1]
        ctx.save_for_backward(*given, read_BTN, rate_NI, between_PBNI)
        return y_BTI, between_PBNI[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y_grad_BTI: Tensor, carry_BNI: Tensor) -> tuple[Tensor | None, ...]:
        *given, read_BTN, rate_NI, between_PBNI = ctx.saved_tensors
        x_BTI, step_BTI, write_BTN, _ = given
        x_grad, step_grad, write_grad, read_grad = map(torch.empty_like, (x_BTI, step_BTI, write_BTN, read_BTN))
        rate_grad_NI, room = torch.zeros_like(rate_NI), _room(x_BTI, rate_NI)
        grad_room, spare = torch.empty_like(room[0]), torch.empty_like(room[0])
        for index, piece in reversed(list(enumerate(_pieces(x_BTI.shape[1])))):
            decay, states = _states(given, rate_NI, piece, between_PBNI[index], room)
            length = decay.shape[1]
            x, size, y_grad = x_BTI[:, piece], step_BTI[:, piece], y_grad_BTI[:, piece]
            grad = torch.mul(read_BTN[:, piece, :, None], y_grad[:, :, None], out=grad_room[:, :length])
            carry_BNI = _back(grad, decay, carry_BNI)
            taken_grad = (write_BTN[:, piece, None] @ grad)[:, :, 0]
            read_grad[:, piece] = (y_grad[:, :, None] @ states.mT)[:, :, 0]
            write_grad[:, piece] = ((size * x)[:, :, None] @ grad.mT)[:, :, 0]
            x_grad[:, piece] = taken_grad * size
            # Of the decay's exponent step * rate: the gradient of the state, times what the decay left of the last one.
            grad.mul_(decay)
            grad[:, 1:].mul_(states[:, :-1])
            grad[:, 0].mul_(between_PBNI[index])
            step_grad[:, piece] = torch.mul(grad, rate_NI, out=spare[:, :length]).sum(2) + taken_grad * x
            rate_grad_NI += grad.mul_(size[:, :, None]).sum((0, 1))
        return x_grad, step_grad, write_grad, read_grad, carry_BNI, None, rate_grad_NI


def _pieces(length: int) -> list[slice]:
    return [slice(first, min(length, first + PIECE)) for first in range(0, length, PIECE)]


def _room(x_BTI: Tensor, rate_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the decays and states of one piece, used again by the next."""
    shape = (len(x_BTI), min(PIECE, x_BTI.shape[1]), *rate_NI.shape)
    return x_BTI.new_empty(shape), x_BTI.new_empty(shape)


def _states(
    given: tuple[Tensor, ...], rate_NI: Tensor, piece: slice, state_BNI: Tensor, room: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Decays and states of the tokens of a `piece`, each [B, C, N, I], after `state_BNI`."""
    x_BCI, step_BCI, write_BCN, begins_BC = (None if tensor is None else tensor[:, piece] for tensor in given)
    decay_BCNI, state_BCNI = (tensor[:, : x_BCI.shape[1]] for tensor in room)
    torch.exp(torch.mul(step_BCI[:, :, None], rate_NI, out=decay_BCNI), out=decay_BCNI)
    if begins_BC is not None:
        decay_BCNI.masked_fill_(begins_BC[..., None, None], 0)
    torch.mul(write_BCN[..., None], (step_BCI * x_BCI)[:, :, None], out=state_BCNI)
    for decay_BNI, new_BNI in zip(decay_BCNI.unbind(1), state_BCNI.unbind(1), strict=True):
        state_BNI = new_BNI.addcmul_(decay_BNI, state_BNI)
    return decay_BCNI, state_BCNI


def _back(grad_BCNI: Tensor, decay_BCNI: Tensor, carry_BNI: Tensor) -> Tensor:
    """Add to the gradient of each state what comes through the later ones; that of the state before the piece."""
    decays, grads = decay_BCNI.unbind(1), grad_BCNI.unbind(1)
    grads[-1].add_(carry_BNI)
    for t in range(len(grads) - 2, -1, -1):
        grads[t].addcmul_(decays[t + 1], grads[t + 1])
    return decays[0] * grads[0]


@build.register
def _(part: Mamba, d_model: int) -> nn.Module:
    return MambaModule(part, d_model)
