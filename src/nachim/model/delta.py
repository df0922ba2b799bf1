"""The gated delta rule: a state that decays and is corrected, in chunks for training, a token at a time to decode."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.block import Memory
from nachim.model.build import build
from nachim.model.chunks import in_chunks, wide
from nachim.model.convolution import Convolution
from nachim.model.frame import Frame
from nachim.model.norm import rms_norm
from nachim.model.position import PositionModule
from nachim.spec import GatedDeltaNet

FASTEST, STEPS = 16.0, (0.001, 0.1)
"""Rates of forgetting begin uniform in (0, 16), steps log-uniform between these bounds, as in Mamba-2 (2405.21060)."""


class GatedDeltaNetModule(nn.Module):
    """y_t = q_t S_t, S_t = a_t S_(t-1) + k_t b_t (v_t - a_t k_t S_(t-1)), decay a, strength b (2412.06464, eq. 10).

    Queries and keys have length 1, heads are normalised and then gated; order is told by the state alone.
    """

    def __init__(self, part: GatedDeltaNet, d_model: int) -> None:
        super().__init__()
        self.part = part
        self.qkvz = nn.Linear(d_model, part.channels + part.values, bias=False)
        self.rates = nn.Linear(d_model, 2 * part.n_heads, bias=False)
        self.convolution = Convolution(part.channels, part.d_conv, bias=False)
        self.log_rate = nn.Parameter(torch.empty(part.n_heads))
        self.step_bias = nn.Parameter(torch.empty(part.n_heads))
        self.norm = rms_norm(part.d_value, eps=1e-6 * part.d_key)  # of queries not over sqrt(d_key)
        self.out = nn.Linear(part.values, d_model, bias=False)

    def draw(self, generator: torch.Generator) -> None:
        """Rates and steps as Mamba-2 begins with them."""
        rate_H = torch.empty_like(self.log_rate).uniform_(0, FASTEST, generator=generator)
        low, high = map(math.log, STEPS)
        step_H = torch.empty_like(self.step_bias).uniform_(low, high, generator=generator).exp()
        with torch.no_grad():
            self.log_rate.copy_(rate_H.clamp_min(1e-4).log())
            self.step_bias.copy_(step_H + (-(-step_H).expm1()).log())  # the inverse of softplus

    def forward(self, x_BTD: Tensor, frame: Frame, position: PositionModule, memory: Memory | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]; state [B, H, d_key, d_value] and the convolution's past stay in `memory`."""
        part = self.part
        mixed_BTC, gate_BTV = self.qkvz(x_BTD).split((part.channels, part.values), -1)
        mixed_BTC = F.silu(self.convolution(mixed_BTC, frame, memory))
        keys_BTC, values_BTC = wide(mixed_BTC).split((2 * part.keys, part.values), -1)
        q_BGTE, k_BGTE = unit(keys_BTC.unflatten(-1, (-1, part.d_key))).transpose(1, 2).chunk(2, 1)
        v_BHTF = values_BTC.unflatten(-1, (-1, part.d_value)).transpose(1, 2)
        strength_BTH, step_BTH = wide(self.rates(x_BTD)).chunk(2, -1)
        log_decay_BTH = -wide(self.log_rate).exp() * F.softplus(step_BTH + self.step_bias)
        state_BHEF = None if memory is None else memory.get("state")
        if state_BHEF is None:
            state_BHEF = v_BHTF.new_zeros(len(x_BTD), part.n_heads, part.d_key, part.d_value)
        inputs = (q_BGTE, k_BGTE, v_BHTF, log_decay_BTH.mT, strength_BTH.sigmoid().mT, state_BHEF, frame)
        y_BHTF, state_BHEF = recurrent(*inputs) if frame.T == 1 else chunked(*inputs, part.chunk)
        if memory is not None:
            memory["state"] = state_BHEF
        y_BTHF = self.norm(y_BHTF.transpose(1, 2).to(x_BTD.dtype))
        return self.out(y_BTHF.flatten(2) * F.silu(gate_BTV))


def unit(x: Tensor) -> Tensor:
    """The last axis with length 1; a vector near zero stays short."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def recurrent(
    q_BGTE: Tensor,
    k_BGTE: Tensor,
    v_BHTF: Tensor,
    log_decay_BHT: Tensor,
    strength_BHT: Tensor,
    state_BHEF: Tensor,
    frame: Frame,
) -> tuple[Tensor, Tensor]:
    """A token at a time: y [B, H, T, F] and the state after the last (arXiv 2412.06464, eq. 10)."""
    repeats = v_BHTF.shape[1] // k_BGTE.shape[1]
    q_BHTE, k_BHTE = (part.repeat_interleave(repeats, 1) for part in (q_BGTE, k_BGTE))
    decay_BHT = log_decay_BHT.exp()
    if frame.begins_BT is not None:
        decay_BHT = decay_BHT * ~frame.begins_BT[:, None]
    found = []
    for t in range(frame.T):
        state_BHEF = state_BHEF * decay_BHT[:, :, t, None, None]
        k_BH1E = k_BHTE[:, :, t, None]
        lacking_BH1F = (v_BHTF[:, :, t, None] - k_BH1E @ state_BHEF) * strength_BHT[:, :, t, None, None]
        state_BHEF = state_BHEF + k_BH1E.mT @ lacking_BH1F
        found.append(q_BHTE[:, :, t, None] @ state_BHEF)
    return torch.cat(found, 2), state_BHEF


def chunked(
    q_BGTE: Tensor,
    k_BGTE: Tensor,
    v_BHTF: Tensor,
    log_decay_BHT: Tensor,
    strength_BHT: Tensor,
    state_BHEF: Tensor,
    frame: Frame,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """What `recurrent` gives, in matrix products (arXiv 2406.06484, sec. 3.2, with the decays of 2412.06464, sec. 3.3).

    What the tokens of a chunk write follows from a unit triangular system: each value less what the state before the
    chunk and the tokens before it in the chunk already say at its key.
    """
    chunks = in_chunks(frame, chunk)
    groups, repeats = k_BGTE.shape[1], v_BHTF.shape[1] // k_BGTE.shape[1]

    def headed(x_BGN: Tensor, factor_BHN: Tensor) -> Tensor:
        """Values of key heads times factors of the heads they serve."""
        return (x_BGN[:, :, None] * factor_BHN.unflatten(1, (groups, repeats))).flatten(1, 2)

    q_BGNCE, k_BGNCE, v_BHNCF = (chunks.split(part) for part in (q_BGTE, k_BGTE, v_BHTF))
    passed_BHNC1, strength_BHNC1 = (chunks.split(part[..., None]) for part in (log_decay_BHT, strength_BHT))
    passed_BHNC1 = passed_BHNC1.cumsum(3)
    last_BHN11 = passed_BHNC1[..., -1:, :]
    kept_BHNCC, reads_BHNC1 = chunks.kept(passed_BHNC1), chunks.read(passed_BHNC1.exp())

    system_BHNCC = headed(k_BGNCE @ k_BGNCE.mT, kept_BHNCC * strength_BHNC1)
    asked = torch.cat((v_BHNCF * strength_BHNC1, headed(k_BGNCE, reads_BHNC1 * strength_BHNC1)), -1)
    solved = torch.linalg.solve_triangular(system_BHNCC, asked, upper=False, unitriangular=True)
    written_BHNCF, met_BHNCE = solved.split((v_BHNCF.shape[-1], k_BGNCE.shape[-1]), -1)
    readers_BHNCE = torch.cat((met_BHNCE, headed(q_BGNCE, reads_BHNC1)), 3)
    left_BHNCE = headed(k_BGNCE, chunks.written((last_BHN11 - passed_BHNC1).exp()))

    reads, writes = [], []
    steps = (readers_BHNCE, written_BHNCF, left_BHNCE.mT, chunks.carried(last_BHN11.exp()))
    for readers, written, left, carry in zip(*(part.unbind(2) for part in steps), strict=True):
        said, read = (readers @ state_BHEF).chunk(2, 2)
        writes.append(written - said)
        reads.append(read)
        state_BHEF = state_BHEF * carry + left @ writes[-1]
    scores_BHNCC = headed(q_BGNCE @ k_BGNCE.mT, kept_BHNCC)
    return chunks.join(torch.stack(reads, 2) + scores_BHNCC @ torch.stack(writes, 2)), state_BHEF


@build.register
def _(part: GatedDeltaNet, d_model: int) -> nn.Module:
    return GatedDeltaNetModule(part, d_model)
