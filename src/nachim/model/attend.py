"""Exact attention whose memory grows with the tokens, not with their square.

torch's fused kernel (`scaled_dot_product_attention`) does what it can: the plain causal case, any mask or additive
bias, and sinks, once they are a token more. A cap on the scores it cannot: FlexAttention does on a GPU, and a form that
takes the queries in chunks and makes each chunk's scores again in the backward pass does everywhere. Chunks also keep
masks small, and let a window cost what it admits (arXiv 2004.05150, sec. 3.1). `plain_attention` is the n x n form.
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

CHUNK = 128
"""Queries taken at once where not all are: their scores, times all keys, are what stands in memory."""
RAMP = 512
"""Tokens up to which a bias may be a channel of fp32 queries and keys: rounding grows with them, here to 5e-6."""
WHOLE = 16
"""Keys in 16 bits of which the kernel takes whole numbers: in what is left over it adds up in another order, so that
what a token gets would depend on how many come after it."""
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
    if frame.look is not None:
        frame.look(q_BHTE, k_BKSE, frame, rule)
    T, keys = q_BHTE.shape[2], k_BKSE.shape[2]
    whole = rule.window is None or rule.window >= keys
    biased = type(position).bias is not PositionModule.bias
    plain = whole and keys == T and frame.documents_BS is None and rule.softcap is None
    if plain and not biased:
        return fused(q_BHTE, k_BKSE, v_BKSE, None, rule, sinks_H, causal=True)
    if plain and T <= RAMP and sinks_H is None and q_BHTE.dtype.itemsize >= 4 and not q_BHTE.is_cuda:
        ramp = position.ramp(frame, keys, q_BHTE.shape[1])
        if ramp is not None:
            return ramped(q_BHTE, k_BKSE, v_BKSE, *ramp, rule)
    if q_BHTE.is_cuda and T > CHUNK and not biased and q_BHTE.shape[-1] >= FLEX_WIDTH:
        return flex(q_BHTE, k_BKSE, v_BKSE, frame, rule, sinks_H)
    return chunked(q_BHTE, k_BKSE, v_BKSE, Chunks(frame, position, rule, keys), sinks_H)


def fused(
    q_BHTE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    added: Tensor | None,
    rule: Rule,
    sinks_H: Tensor | None,
    causal: bool = False,
) -> Tensor:
    """softmax(q.k scale + added) v by torch's kernel, [B, H, T, E]; `causal` is a mask of as many keys as queries."""
    (H, T, E), K, scale, width = q_BHTE.shape[1:], k_BKSE.shape[1], rule.scale, v_BKSE.shape[-1]
    if sinks_H is not None:
        scale = E**-0.5 if scale is None else scale
        q_BHTE, k_BKSE, v_BKSE = with_sink(q_BHTE, k_BKSE, v_BKSE, sinks_H, scale, causal)
        added = None if added is None else F.pad(added, (1, 0))
    if k_BKSE.shape[2] % WHOLE and q_BHTE.dtype.itemsize < 4 and not (torch.is_grad_enabled() or q_BHTE.is_cuda):
        q_BHTE, k_BKSE, v_BKSE, added = with_padding(q_BHTE, k_BKSE, v_BKSE, added, causal)
    if T == 1 and not causal:
        return one_token(q_BHTE, k_BKSE, v_BKSE, added, scale)[..., :width]
    y_BHTE = F.scaled_dot_product_attention(
        q_BHTE, k_BKSE, v_BKSE, added, is_causal=causal, enable_gqa=H != K, scale=scale
    )
    first = int(causal and sinks_H is not None)
    return y_BHTE[:, :, first : first + T, :width]


def one_token(q_BH1E: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, added: Tensor | None, scale: float | None) -> Tensor:
    """softmax(q.k scale + added) v of one new token, [B, H, 1, E]: the heads of a group are rows of one, so that keys
    are not repeated. In 16 bits there are at least two rows, as in a whole text: one alone is added up otherwise."""
    (B, H), K = q_BH1E.shape[:2], k_BKSE.shape[1]
    if added is not None and added.shape[1] != 1:
        added = added.reshape(len(added), K, H // K, -1)
    q_BKGE = q_BH1E.reshape(B, K, H // K, -1)
    if H == K and q_BH1E.dtype.itemsize < 4:
        q_BKGE = q_BKGE.repeat(1, 1, 2, 1)
    y_BKGE = F.scaled_dot_product_attention(q_BKGE, k_BKSE, v_BKSE, added, scale=scale)
    return y_BKGE[:, :, : H // K].reshape(B, H, 1, -1)


def with_padding(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, added: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Keys that nobody may see after the others, up to a multiple of `WHOLE`; where it is `causal` they ask too."""
    keys = k_BKSE.shape[2]
    more = (0, 0, 0, -keys % WHOLE)
    k_BKSE, v_BKSE = F.pad(k_BKSE, more), F.pad(v_BKSE, more)
    if causal:
        return F.pad(q_BHTE, more), k_BKSE, v_BKSE, added
    added = q_BHTE.new_zeros(1, 1, 1, keys) if added is None else added
    return q_BHTE, k_BKSE, v_BKSE, F.pad(added, (0, -keys % WHOLE), value=float("-inf"))


def ramped(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, factor_H: Tensor, number_S: Tensor, rule: Rule) -> Tensor:
    """softmax(q.k scale + factor number) v, causal, [B, H, T, E]: a head's factor times a key's number, the bias, is
    the part of a score that one channel more gives, so that no mask stands in memory."""
    B, H, T, E = q_BHTE.shape
    rule = Rule(scale=E**-0.5 if rule.scale is None else rule.scale)
    factor_BHT1 = (factor_H / rule.scale).to(q_BHTE.dtype)[:, None, None].expand(B, H, T, 1)
    number_BKS1 = number_S.to(k_BKSE.dtype)[:, None].expand(*k_BKSE.shape[:3], 1)
    q_BHTF, k_BKSF = torch.cat((q_BHTE, factor_BHT1), -1), torch.cat((k_BKSE, number_BKS1), -1)
    return fused(q_BHTF, k_BKSF, F.pad(v_BKSE, (0, 1)), None, rule, None, causal=True)[..., :E]


def with_sink(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, sinks_H: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A token before all others whose score is the head's sink and whose value is 0: one channel more tells it apart.

    Where the mask is `causal` that token asks too, so that there are as many keys as queries.
    """
    B, H, T, E = q_BHTE.shape
    sinks_BHT1 = sinks_H.to(q_BHTE.dtype)[:, None, None].expand(B, H, T, 1)
    token_F = F.pad(k_BKSE.new_full((1,), 1 / scale), (E, 0))
    q_BHTF = F.pad(torch.cat((q_BHTE, sinks_BHT1), -1), (0, 0, int(causal), 0))
    k_BKSF = torch.cat((token_F.expand(*k_BKSE.shape[:2], 1, E + 1), F.pad(k_BKSE, (0, 1))), 2)
    return q_BHTF, k_BKSF, F.pad(v_BKSE, (0, 1, 1, 0))


def scored(
    q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, added: Tensor | None, rule: Rule, sinks_H: Tensor | None
) -> Tensor:
    """softmax(cap(q.k scale) + added) v, [B, H, T, E], its softmax in fp32 at least; all scores stand in memory."""
    B, H, T, E = q_BHTE.shape
    K, cap = k_BKSE.shape[1], rule.softcap
    added = q_BHTE.new_zeros(1, 1, T, k_BKSE.shape[2]) if added is None else added
    if sinks_H is not None:  # a token more, whose score is 0 but for what is added
        k_BKSE, v_BKSE = F.pad(k_BKSE, (0, 0, 1, 0)), F.pad(v_BKSE, (0, 0, 1, 0))
        added = added.expand(-1, H, -1, -1)
        added = torch.cat((sinks_H.to(added.dtype)[:, None, None].expand(*added.shape[:3], 1), added), -1)
    q_BHTE = q_BHTE * ((E**-0.5 if rule.scale is None else rule.scale) / (cap or 1.0))
    score = q_BHTE.reshape(B, K, -1, E) @ k_BKSE.transpose(-1, -2)  # heads of a group as rows: keys are not repeated
    score_BHTS = score.to(torch.promote_types(score.dtype, torch.float32)).view(B, H, T, -1)
    score_BHTS = score_BHTS + added if cap is None else torch.add(added, score_BHTS.tanh(), alpha=cap)
    weight = score_BHTS.softmax(-1).to(v_BKSE.dtype)
    return (weight.view(B, K, -1, weight.shape[-1]) @ v_BKSE).view(B, H, T, E)


class Chunks:
    """The new tokens of one attention over `keys` tokens in all, some of them at a time."""

    def __init__(self, frame: Frame, position: PositionModule, rule: Rule, keys: int) -> None:
        self.frame, self.position, self.rule, self.keys = frame, position, rule, keys
        self.biased = type(position).bias is not PositionModule.bias

    @property
    def remade(self) -> bool:
        """Whether what chunks would keep for the backward pass beside queries, keys and values is too much."""
        if self.rule.softcap is not None:
            return True
        wide = self.rule.window is not None and self.rule.window > 2 * CHUNK  # copies of keys, one a chunk
        return self.frame.T > CHUNK and (wide or self.biased or self.frame.documents_BS is not None)

    def reach(self, begin: int, end: int) -> int:
        """How many tokens, up to new token `end`, one from `begin` on may see; all where one chunk is."""
        frame, window = self.frame, self.rule.window
        if frame.T <= CHUNK:
            return self.keys
        seen = self.keys - frame.T + end
        if window is not None:
            seen = min(seen, end - begin + window - 1)
        return seen if frame.behind is None else min(seen, end - begin + frame.behind[begin])

    def __call__(
        self,
        q_BHTE: Tensor,
        k_pieces: tuple[Tensor, ...],
        v_pieces: tuple[Tensor, ...],
        sinks_H: Tensor | None,
        begin: int,
        end: int,
    ) -> Tensor:
        """As `attend`, of the new tokens from `begin` to `end`; keys and values in pieces, up to the last new token."""
        keys, frame = self.reach(begin, end), self.frame
        frame = frame if end - begin == frame.T else frame.part(begin, end)
        k_BKSE, v_BKSE = last(k_pieces, keys), last(v_pieces, keys)
        added = self._mask(frame, keys, q_BHTE.dtype)
        bias = self.position.bias(frame, keys, q_BHTE.shape[1])
        if bias is not None:
            bias = bias.to(q_BHTE.dtype)
            added = bias if added is None else added + bias
        # with a gradient of its mask, torch's kernel takes the long way too
        learned = added is not None and added.requires_grad
        form = fused if self.rule.softcap is None and not learned else scored
        return form(q_BHTE, k_BKSE, v_BKSE, added, self.rule, sinks_H)

    def _mask(self, frame: Frame, keys: int, dtype: torch.dtype) -> Tensor | None:
        """0 where a token may be attended to and -inf elsewhere, [B or 1, 1, T, keys]; None where it is 0 all over."""
        window, whole = self.rule.window, self.frame
        if frame.documents_BS is not None:
            return frame.once(("additive", window, keys, dtype), lambda: additive(frame.allowed(window, keys), dtype))
        rows = min(CHUNK, whole.T)
        most = self.keys if window is None or frame is whole else min(self.keys, rows + window - 1)
        band = whole.once(  # counted from its end it is that of every chunk, in every layer
            ("band", window, most, dtype),
            lambda: additive(whole.part(whole.T - rows, whole.T).allowed(window, most), dtype),
        )
        return None if band is None else band[..., -frame.T :, -keys:]


def last(pieces: tuple[Tensor, ...], count: int) -> Tensor:
    """The last `count` tokens of [B, K, ., E] pieces, of which none is without them."""
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2))[:, :, -count:]


def additive(allowed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask as what is added to scores."""
    return None if allowed is None else torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, float("-inf"))


def chunked(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, chunks: Chunks, sinks_H: Tensor | None) -> Tensor:
    """As `attend`, `CHUNK` queries at a time, each with the keys that one of them may see.

    Keys go in as pieces, so that the gradient of each is summed over the chunks that saw it and no others.
    """
    T = q_BHTE.shape[2]
    if T <= CHUNK and not torch.is_grad_enabled():
        return chunks(q_BHTE, (k_BKSE,), (v_BKSE,), sinks_H, 0, T)
    begins = range(0, T, CHUNK)
    past = k_BKSE.shape[2] - T
    sizes = [past, *(min(CHUNK, T - begin) for begin in begins)] if T > CHUNK else [0, past + T]
    k_pieces, v_pieces = k_BKSE.split(sizes, 2), v_BKSE.split(sizes, 2)
    outs = []
    for number, begin in enumerate(begins, 1):
        end = min(begin + CHUNK, T)
        first, left = number, chunks.reach(begin, end)
        while left > sizes[first]:
            left -= sizes[first]
            first -= 1
        seen = slice(first, number + 1)
        inputs = q_BHTE[:, :, begin:end], k_pieces[seen], v_pieces[seen], sinks_H, begin, end
        if chunks.remade and torch.is_grad_enabled():
            outs.append(checkpoint(chunks, *inputs, use_reentrant=False, preserve_rng_state=False))
        else:
            outs.append(chunks(*inputs))
    return torch.cat(outs, 2)


def flex(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, frame: Frame, rule: Rule, sinks_H: Tensor | None) -> Tensor:
    """As `attend` without a position's bias, by FlexAttention (arXiv 2412.05496), which skips blocks nobody sees.

    A sink leaves the values e^lse / (e^lse + e^sink) of their mix, lse being the log of the softmax's denominator.
    """
    T, keys = q_BHTE.shape[2], k_BKSE.shape[2]
    past, skipped, documents_BS, window = keys - T, frame.S - keys, frame.documents_BS, rule.window
    # a number that differs between layers would be compiled for each
    cap = torch.tensor(
        rule.softcap or 1.0, dtype=torch.promote_types(q_BHTE.dtype, torch.float32), device=q_BHTE.device
    )

    def allowed(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        may = key <= query + past
        if window is not None:
            may = may & (query + past - key < window)
        if documents_BS is not None:
            may = may & (documents_BS[b, query + past + skipped] == documents_BS[b, key + skipped])
        return may

    def bounded(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    rows = None if documents_BS is None else frame.B
    masks = fastest(create_block_mask, q_BHTE.is_cuda)
    mask = frame.once(("blocks", window, keys), lambda: masks(allowed, rows, None, T, keys, q_BHTE.device))
    found = fastest(flex_attention, q_BHTE.is_cuda)(
        q_BHTE,
        k_BKSE,
        v_BKSE,
        score_mod=None if rule.softcap is None else bounded,
        block_mask=mask,
        scale=rule.scale,
        enable_gqa=q_BHTE.shape[1] != k_BKSE.shape[1],
        return_aux=None if sinks_H is None else AuxRequest(lse=True),
    )
    if sinks_H is None:
        return found
    y_BHTE, aux = found
    return y_BHTE * torch.sigmoid(aux.lse - sinks_H[:, None].to(aux.lse.dtype))[..., None].to(y_BHTE.dtype)


@functools.cache
def fastest(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """`function`, compiled where that is asked for."""
    return torch.compile(function) if compiled else function


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
