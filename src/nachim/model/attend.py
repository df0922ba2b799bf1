"""Exact attention whose memory grows with the tokens, not with their square.

torch's fused kernel (`scaled_dot_product_attention`) does what it can: the plain causal case, and any mask or additive
bias. Where a score is capped or a head has a sink it cannot: FlexAttention does on a GPU, and a form that takes the
queries in chunks and computes each chunk's scores again in the backward pass does everywhere. Chunks also keep masks
small, and let a window cost what it admits (arXiv 2004.05150, sec. 3.1). `plain_attention` is the n x n reference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from nachim.model.frame import Frame
from nachim.model.position import PositionModule

CHUNK = 256
"""Queries taken at once where not all are: their scores, times all keys, are what stands in memory."""
FLEX_WIDTH = 16
"""The narrowest head FlexAttention's kernel takes."""


@dataclass(frozen=True)
class Rule:
    """How scores are made: tokens a token sees, factor on q.k (None: 1/sqrt(E)), bound of a score."""

    window: int | None = None
    scale: float | None = None
    softcap: float | None = None


def attend(
    q_BHTE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    frame: Frame,
    position: PositionModule,
    rule: Rule,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Each new token's mix of the values it may see, [B, H, T, E]; keys and values are of the frame's last tokens.

    softmax(cap(q.k scale) + bias) v over the tokens `frame` and the window allow; cap(s) = c tanh(s/c), and a head's
    sink stands in its denominator alone.
    """
    T, keys = q_BHTE.shape[2], k_BKSE.shape[2]
    fused = rule.softcap is None and sinks_H is None
    whole = rule.window is None or rule.window >= keys
    biased = type(position).bias is not PositionModule.bias
    if fused and not biased and whole and keys == T and frame.documents_BS is None:
        grouped = q_BHTE.shape[1] != k_BKSE.shape[1]
        return F.scaled_dot_product_attention(
            q_BHTE, k_BKSE, v_BKSE, is_causal=True, enable_gqa=grouped, scale=rule.scale
        )
    if q_BHTE.is_cuda and T > CHUNK and not biased and q_BHTE.shape[-1] >= FLEX_WIDTH:
        return flex(q_BHTE, k_BKSE, v_BKSE, frame, rule, sinks_H)
    return chunked(q_BHTE, k_BKSE, v_BKSE, frame, _Chunk(position, rule, fused, biased), sinks_H)


class _Chunk:
    """Attention of some queries, whose mask is small enough to stand in memory."""

    def __init__(self, position: PositionModule, rule: Rule, fused: bool, biased: bool) -> None:
        self.position, self.rule, self.fused, self.biased = position, rule, fused, biased

    def __call__(
        self,
        q_BHTE: Tensor,
        k_BKSE: Tensor,
        v_BKSE: Tensor,
        sinks_H: Tensor | None,
        whole: Frame,
        begin: int,
        end: int,
    ) -> Tensor:
        """As `attend`, of the new tokens of `whole` from `begin` to `end`."""
        H, keys = q_BHTE.shape[1], k_BKSE.shape[2]
        frame = whole if end - begin == whole.T else whole.part(begin, end)
        bias = self.position.bias(frame, keys, H)
        mask = self._mask(frame, keys, q_BHTE.dtype, whole)
        added = mask if bias is None else bias.to(q_BHTE.dtype) if mask is None else mask + bias.to(q_BHTE.dtype)
        if self.fused:
            grouped = k_BKSE.shape[1] != H
            scale = self.rule.scale
            return F.scaled_dot_product_attention(q_BHTE, k_BKSE, v_BKSE, added, enable_gqa=grouped, scale=scale)
        return weighed(q_BHTE, k_BKSE, v_BKSE, added, self.rule, sinks_H)

    def _mask(self, frame: Frame, keys: int, dtype: torch.dtype, whole: Frame) -> Tensor | None:
        """0 where a token may be attended to and -inf elsewhere, [B or 1, 1, T, keys]; None where it is 0."""
        window = self.rule.window

        def make() -> Tensor | None:
            return additive(frame.allowed(window, keys), dtype)

        if frame.documents_BS is not None and frame is not whole:
            return make()
        return whole.once(("additive", window, frame.T, keys, dtype), make)  # without documents chunks share it


def additive(allowed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask as what is added to scores."""
    return None if allowed is None else torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, float("-inf"))


def weighed(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, added: Tensor | None, rule: Rule, sinks_H: Tensor | None
) -> Tensor:
    """softmax(cap(q.k scale) + added) v, [B, H, T, E], its softmax in fp32 at least; all scores stand in memory."""
    B, H, T, E = q_BHTE.shape
    K = k_BKSE.shape[1]
    scale = E**-0.5 if rule.scale is None else rule.scale
    score = q_BHTE.reshape(B, K, -1, E) @ k_BKSE.transpose(-1, -2)  # heads of a group as rows: keys are not repeated
    score_BHTS = score.view(B, H, T, -1).to(torch.promote_types(score.dtype, torch.float32)) * scale
    if rule.softcap is not None:
        score_BHTS = rule.softcap * torch.tanh(score_BHTS / rule.softcap)
    if added is not None:
        score_BHTS = score_BHTS + added
    weight = score_BHTS.softmax(-1).to(q_BHTE.dtype)
    y_BHTE = (weight.view(B, K, -1, weight.shape[-1]) @ v_BKSE).view(B, H, T, E)
    return y_BHTE if sinks_H is None else drained(y_BHTE, score_BHTS.logsumexp(-1), sinks_H)


def drained(y_BHTE: Tensor, logsumexp_BHT: Tensor, sinks_H: Tensor) -> Tensor:
    """What is left to the values when a sink takes part in the softmax: times e^lse / (e^lse + e^sink)."""
    share_BHT = torch.sigmoid(logsumexp_BHT - sinks_H[:, None].to(logsumexp_BHT.dtype))
    return y_BHTE * share_BHT[..., None].to(y_BHTE.dtype)


def chunked(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, frame: Frame, kernel: _Chunk, sinks_H: Tensor | None
) -> Tensor:
    """As `attend`, `CHUNK` queries at a time, each with the keys that one of them may see.

    What a chunk keeps for the backward pass is its queries, keys and values: a mask that all chunks share is kept
    beside them, any other is made again, with the scores.
    """
    T = q_BHTE.shape[2]
    past, begins = k_BKSE.shape[2] - T, range(0, T, CHUNK)
    sizes = [past, *(min(CHUNK, T - begin) for begin in begins)]
    k_pieces, v_pieces = k_BKSE.split(sizes, 2), v_BKSE.split(sizes, 2)
    varied = len(begins) > 1 and (kernel.biased or frame.documents_BS is not None)
    remade = torch.is_grad_enabled() and (varied or not kernel.fused)
    outs = []
    for number, begin in enumerate(begins):
        end = min(begin + CHUNK, T)
        seen = reach(frame, begin, end, past, kernel.rule.window)
        k, v = (last(pieces[: number + 2], seen) for pieces in (k_pieces, v_pieces))
        inputs = q_BHTE[:, :, begin:end], k, v, sinks_H, frame, begin, end
        if remade:
            outs.append(checkpoint(kernel, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            outs.append(kernel(*inputs))
    return torch.cat(outs, 2)


def last(pieces: tuple[Tensor, ...], count: int) -> Tensor:
    """The last `count` tokens of [B, K, ., E] pieces."""
    taken, have = [], 0
    for piece in reversed(pieces):
        if have >= count:
            break
        taken.append(piece)
        have += piece.shape[2]
    return torch.cat(taken[::-1], 2)[:, :, have - count :]


def reach(frame: Frame, begin: int, end: int, past: int, window: int | None) -> int:
    """How many tokens, up to new token `end`, one of the new tokens from `begin` on may see."""
    seen = past + end
    if window is not None:
        seen = min(seen, end - begin + window - 1)
    return seen if frame.behind is None else min(seen, end - begin + frame.behind[begin])


def flex(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, frame: Frame, rule: Rule, sinks_H: Tensor | None) -> Tensor:
    """As `attend` without a position's bias, by FlexAttention (arXiv 2412.05496): blocks that nobody sees are skipped."""
    T, keys = q_BHTE.shape[2], k_BKSE.shape[2]
    past, skipped, documents_BS, window, cap = keys - T, frame.S - keys, frame.documents_BS, rule.window, rule.softcap

    def allowed(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        may = key <= query + past
        if window is not None:
            may = may & (query + past - key < window)
        if documents_BS is not None:
            may = may & (documents_BS[b, query + past + skipped] == documents_BS[b, key + skipped])
        return may

    def capped(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    rows = None if documents_BS is None else frame.B
    masks = fastest(create_block_mask, q_BHTE.is_cuda)
    mask = frame.once(("blocks", window, keys), lambda: masks(allowed, rows, None, T, keys, q_BHTE.device))
    y_BHTE, aux = fastest(flex_attention, q_BHTE.is_cuda)(
        q_BHTE,
        k_BKSE,
        v_BKSE,
        score_mod=None if cap is None else capped,
        block_mask=mask,
        scale=rule.scale,
        enable_gqa=q_BHTE.shape[1] != k_BKSE.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return y_BHTE if sinks_H is None else drained(y_BHTE, aux.lse, sinks_H)


@functools.cache
def fastest(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """`function`, compiled once for all shapes where that is asked for."""
    return torch.compile(function, dynamic=True) if compiled else function


def plain_attention(
    q_BHTE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    rule: Rule = Rule(),
    sinks_H: Tensor | None = None,
) -> Tensor:
    """The n x n form (arXiv 1706.03762, eq. 1): the reference that every other form is held against.

    `allowed`, bool and broadcast to [B, H, T, S], is by default causal; `bias`, added to scores, likewise.
    """
    groups = q_BHTE.shape[1] // k_BKSE.shape[1]
    k_BHSE, v_BHSE = k_BKSE.repeat_interleave(groups, 1), v_BKSE.repeat_interleave(groups, 1)
    score_BHTS = q_BHTE @ k_BHSE.transpose(-1, -2) * (q_BHTE.shape[-1] ** -0.5 if rule.scale is None else rule.scale)
    if rule.softcap is not None:
        score_BHTS = rule.softcap * torch.tanh(score_BHTS / rule.softcap)
    if bias is not None:
        score_BHTS = score_BHTS + bias
    T, S = score_BHTS.shape[-2:]
    if allowed is None:
        allowed = torch.ones(T, S, dtype=torch.bool, device=q_BHTE.device).tril(S - T)
    score_BHTS = score_BHTS.masked_fill(~allowed, float("-inf"))
    if sinks_H is not None:
        sink_BHT1 = sinks_H[:, None, None].expand(*score_BHTS.shape[:3], 1)
        score_BHTS = torch.cat((score_BHTS, sink_BHT1), -1)
    return score_BHTS.softmax(-1)[..., :S] @ v_BHSE
