"""Linear attention whose heads forget: retention at fixed rates, gated linear attention at rates tokens set."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.block import Memory
from nachim.model.build import build
from nachim.model.chunks import in_chunks, states, wide
from nachim.model.frame import Frame
from nachim.model.norm import rms_norm
from nachim.model.position import PositionModule
from nachim.spec import LinearAttention

TEMPERATURE = 16.0
"""A gate's sigmoid is taken to the power 1 / 16, so that channels begin by forgetting slowly (2312.06635, sec. 4.4)."""
SLOWEST_LOG = -8.0
"""No channel keeps less than exp(-8) of itself a step, a gate's logit of -128: what lets `_by_channel` stay finite."""
BLOCK = 16
"""Tokens over which decays of single channels are multiplied out, on both sides of its middle."""


class LinearAttentionModule(nn.Module):
    """y_t = q_t S_t, S_t = decay_t S_(t-1) + k_t v_t^T, each head normalised, then gated.

    Retention turns queries and keys by position; where tokens set the decay, that alone tells the order.
    """

    def __init__(self, part: LinearAttention, d_model: int) -> None:
        super().__init__()
        self.part = part
        keys, values = part.n_heads * part.d_key, part.n_heads * part.d_value
        self.rows = (keys, keys, values) + (values,) * part.gate
        self.qkv = nn.Linear(d_model, sum(self.rows), bias=False)
        if part.decay_rank is not None:
            self.decay_in = nn.Linear(d_model, part.decay_rank, bias=False)
            self.decay_out = nn.Linear(part.decay_rank, keys)
        self.norm = rms_norm(part.d_value, eps=1e-6 * part.d_key)  # of scores not over sqrt(d_key)
        self.out = nn.Linear(values, d_model, bias=False)

    def forward(self, x_BTD: Tensor, frame: Frame, position: PositionModule, memory: Memory | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]; the state [B, H, d_key, d_value] stays in `memory`."""
        q_BHTE, k_BHTE, v_BHTF, *gate_BTHF = self._projected(x_BTD)
        log_decay = self._log_decay(x_BTD)
        if self.part.decay_rank is None:
            q_BHTE, k_BHTE = position.turn(q_BHTE, frame), position.turn(k_BHTE, frame)
        state_BHEF = None if memory is None else memory.get("state")
        if state_BHEF is None:
            state_BHEF = v_BHTF.new_zeros(len(x_BTD), self.part.n_heads, self.part.d_key, self.part.d_value)
        form = recurrent if frame.T == 1 else self._chunked
        y_BHTF, state_BHEF = form(q_BHTE, k_BHTE, v_BHTF, log_decay, state_BHEF, frame)
        if memory is not None:
            memory["state"] = state_BHEF
        y_BTHF = self.norm(y_BHTF.transpose(1, 2).to(x_BTD.dtype))
        return self.out((y_BTHF * F.silu(gate_BTHF[0]) if gate_BTHF else y_BTHF).flatten(2))

    def _projected(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [B, H, T, E or F], then the gate [B, T, H, F] where there is one."""
        parts = (part.unflatten(-1, (self.part.n_heads, -1)) for part in self.qkv(x_BTD).split(self.rows, -1))
        q_BTHE, k_BTHE, v_BTHF, *gate_BTHF = parts
        return *(wide(part).transpose(1, 2) for part in (q_BTHE, k_BTHE, v_BTHF)), *gate_BTHF

    def _log_decay(self, x_BTD: Tensor) -> Tensor:
        """Of each head [1, H, 1, 1], or of each channel and token [B, H, T, E]."""
        if self.part.decay_rank is None:
            return retention_log_decay(self.part.n_heads, x_BTD)
        logits_BTHE = wide(self.decay_out(self.decay_in(x_BTD))).unflatten(-1, (self.part.n_heads, -1))
        return (F.logsigmoid(logits_BTHE) / TEMPERATURE).clamp_min(SLOWEST_LOG).transpose(1, 2)

    def _chunked(self, *parts: Tensor | Frame) -> tuple[Tensor, Tensor]:
        return chunked(*parts, self.part.chunk)


def retention_log_decay(n_heads: int, like: Tensor) -> Tensor:
    """[1, H, 1, 1]: head h keeps 1 - 2^(-5 - h) of its state a token (arXiv 2307.08621, eq. 8)."""
    index_H = torch.arange(n_heads, dtype=torch.float64, device=like.device)
    return torch.log1p(-(2.0 ** (-5 - index_H))).to(wide(like[:0]).dtype)[None, :, None, None]


def parallel(q_BHTE: Tensor, k_BHTE: Tensor, v_BHTF: Tensor, log_decay: Tensor, allowed: Tensor) -> Tensor:
    """The n x n form, the reference: y_t = sum over allowed s of (q_t * decays after s) . k_s v_s.

    `log_decay` is [1, H, 1, 1] or [B, H, T, E], `allowed` the frame's mask (2307.08621, eq. 5; 2312.06635, eq. 3).
    """
    passed_BHTE = log_decay.expand_as(q_BHTE).cumsum(2)
    between_BHTTE = passed_BHTE[:, :, :, None] - passed_BHTE[:, :, None]
    kept_BHTTE = between_BHTTE.masked_fill(~allowed[..., None], float("-inf")).exp()
    return torch.einsum("bhte,bhse,bhtse,bhsf->bhtf", q_BHTE, k_BHTE, kept_BHTTE, v_BHTF)


def recurrent(
    q_BHTE: Tensor, k_BHTE: Tensor, v_BHTF: Tensor, log_decay: Tensor, state_BHEF: Tensor, frame: Frame
) -> tuple[Tensor, Tensor]:
    """A token at a time: y [B, H, T, F] and the state after the last (arXiv 2307.08621, eq. 6; 2312.06635, eq. 1)."""
    decay = log_decay.exp()
    if log_decay.shape[2] == 1:
        decay = decay.expand(-1, -1, frame.T, -1)
    if frame.begins_BT is not None:
        decay = decay * ~frame.begins_BT[:, None, :, None]
    found = []
    for t in range(frame.T):
        written_BHEF = k_BHTE[:, :, t, :, None] @ v_BHTF[:, :, t, None]
        state_BHEF = torch.addcmul(written_BHEF, decay[:, :, t, :, None], state_BHEF)
        found.append(q_BHTE[:, :, t, None] @ state_BHEF)
    return torch.cat(found, 2), state_BHEF


def chunked(
    q_BHTE: Tensor, k_BHTE: Tensor, v_BHTF: Tensor, log_decay: Tensor, state_BHEF: Tensor, frame: Frame, chunk: int
) -> tuple[Tensor, Tensor]:
    """What `recurrent` gives, in matrix products: scores inside chunks, the state between (arXiv 2312.06635, sec. 4.1).

    Every decay is taken from or to a place in its own chunk, so no exponent is large.
    """
    by_head = log_decay.shape[-1] == 1
    chunks = in_chunks(frame, chunk) if by_head else in_chunks(frame, chunk, BLOCK)
    q_BHNCE, k_BHNCE, v_BHNCF = (chunks.split(part) for part in (q_BHTE, k_BHTE, v_BHTF))
    if by_head:
        passed = chunks.split(log_decay.expand(-1, -1, frame.T, -1)).cumsum(3)
        key = ("retention", chunks.C, passed.shape[1], passed.dtype)
        scores_BHNCC = q_BHNCE @ k_BHNCE.mT * frame.once(key, lambda: chunks.kept(passed[:, :, :1]))
    else:
        passed = chunks.split(log_decay).cumsum(3)
        scores_BHNCC = _by_channel(q_BHNCE, k_BHNCE, passed).masked_fill(~chunks.met, 0)
    last = passed[..., -1:, :]
    written_BHNEF = (k_BHNCE * chunks.written((last - passed).exp())).mT @ v_BHNCF
    before_BHNEF, state_BHEF = states(written_BHNEF, chunks.carried(last.mT.exp()), state_BHEF)
    read_BHNCF = (q_BHNCE * chunks.read(passed.exp())) @ before_BHNEF
    return chunks.join(scores_BHNCC @ v_BHNCF + read_BHNCF), state_BHEF


def _by_channel(q_BHNCE: Tensor, k_BHNCE: Tensor, passed_BHNCE: Tensor) -> Tensor:
    """Scores q_i . (exp(passed_i - passed_j) * k_j), [B, H, N, C, C], of tokens j not after i; at others, no meaning.

    Each block of queries has its own reference, the decay up to its middle: queries then differ from it by half a block
    at most, keys of its block too, and keys before it have decayed since.
    """
    size = min(BLOCK, q_BHNCE.shape[-2])
    half = (size + 1) // 2
    q_BHNICE, passed_BHNICE = (part.unflatten(-2, (-1, size)) for part in (q_BHNCE, passed_BHNCE))
    middle_BHNI1E = passed_BHNICE[..., half - 1 : half, :]
    q_BHNICE = q_BHNICE * (passed_BHNICE - middle_BHNI1E).exp()
    since_BHNICE = (middle_BHNI1E - passed_BHNCE[..., None, :, :]).clamp_max(-SLOWEST_LOG * half)
    return (q_BHNICE @ (k_BHNCE[..., None, :, :] * since_BHNICE.exp()).mT).flatten(-3, -2)


@build.register
def _(part: LinearAttention, d_model: int) -> nn.Module:
    return LinearAttentionModule(part, d_model)
