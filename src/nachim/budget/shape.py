"""Real decoders near a wanted M: whole layers, heads that fit, widths the machine likes."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

from nachim.spec import Attention, Decoder, SwiGLU, UserError

WIDTHS = (*range(32, 512, 16), *range(512, 8193, 64))
"""Heads are 16 wide, from 512 on 64: members with heads of other widths lay up to 1.6 % of loss off the others' law
(`ideas/shapes.md`)."""


def shape(d_model: int, vocab_size: int) -> Decoder:
    """The family's decoder of width `d_model`: (d_model / 16)^0.75 layers (at least 2), heads about 16 wide.

    Depth and width grow together (2 x 64, 4 x 128, 22 x 1024): a law fitted on small members speaks of large ones.
    Head width grows to 64 where the model is wide enough to have eight such heads.
    """
    target = 64 if d_model >= 512 else 16
    n_heads = next(n for n in range(max(1, round(d_model / target)), 0, -1) if d_model % (2 * n) == 0)
    attention = Attention(
        n_heads=n_heads, n_kv_heads=n_heads, d_head=d_model // n_heads, qk_norm=True, previous_key=True
    )
    return Decoder(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=max(2, int((d_model / 16) ** 0.75)),
        attention=attention,
        ffn=SwiGLU(d_ff=round(d_model / 3) * 8),
    )


@functools.cache
def family(vocab_size: int, seq_len: int, n_layers: int | None = None) -> tuple[tuple[float, Decoder], ...]:
    """Every member with its M, FLOP/token, smallest first: as deep as `shape` has it, or all of `n_layers`."""
    members = [shape(width, vocab_size) for width in WIDTHS]
    if n_layers is not None:
        members = [replace(model, n_layers=n_layers) for model in members]
    return tuple((float(model.flops_per_token(seq_len)), model) for model in members)


def middle_layers(low: float, high: float, vocab_size: int, seq_len: int) -> int:
    """Layers of the family's decoder in the middle between M = `low` and `high` FLOP/token."""
    middle = max((low * high) ** 0.5, family(vocab_size, seq_len)[0][0])
    return nearest_shape(middle, vocab_size, seq_len).n_layers


def nearest_shape(flops_per_token: float, vocab_size: int, seq_len: int, n_layers: int | None = None) -> Decoder:
    """The decoder of `family` whose M is nearest in ratio. Raises UserError when none is within a factor of two."""
    if not flops_per_token > 0:
        raise UserError(f"M = {flops_per_token:.3g} FLOP/token is no size of a model: it must be above 0")
    members = family(vocab_size, seq_len, n_layers)
    found, best = min(members, key=lambda member: abs(math.log(member[0] / flops_per_token)))
    if not 0.5 < found / flops_per_token < 2:
        raise UserError(
            f"no decoder has M = {flops_per_token:.3g} FLOP/token at length {seq_len}; the nearest has {found:.3g}: "
            "choose another budget or length"
        )
    return best


def ladder_shapes(
    low: float, high: float, count: int, vocab_size: int, seq_len: int, n_layers: int | None = None
) -> list[Decoder]:
    """At most `count` different decoders of `family`, M evenly spaced in ratio from `low` to `high` FLOP/token.

    Raises UserError when no decoder is that small or that large.
    """
    step = (high / low) ** (1 / max(1, count - 1))
    found = (nearest_shape(low * step**i, vocab_size, seq_len, n_layers) for i in range(count))
    return list(dict.fromkeys(found))
