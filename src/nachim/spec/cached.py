"""What keys, values and latents take in a cache that rounds them, as `nachim.infer.shelf` lays them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cached = Literal["int8", "int4"]
"""How a cache may round what grows with the tokens; states that do not are kept as they are."""
BLOCK = 64
"""Tokens of a block: with "int4" whole blocks are in four bits, the tokens after them in eight."""


@dataclass(frozen=True)
class Paged:
    """`heads` of `width` values that a token adds; in four bits they have steps by channels, or else by tokens."""

    heads: int
    width: int
    channels: bool

    def bytes_per_token(self, cache: Cached) -> tuple[float, float]:
        """Bytes of a token in a whole block, and in one that is not whole yet.

        In eight bits every head has one byte more, of its step. In four, tokens have that too; channels have two bytes
        a block, step and offset. Pages are of one size, so that eight bits take twice as much as four.
        """
        values = self.heads * self.width
        if cache == "int8":
            return values + self.heads, values + self.heads
        marks = max(self.heads / 2, 2 * values / BLOCK) if self.channels else self.heads
        return values / 2 + marks, values + 2 * marks

    def bytes(self, seq_len: float, window: int | None, cache: Cached) -> float:
        """Bytes of a sequence of `seq_len` tokens. Windows let go of whole blocks, and are in four bits from one on."""
        if cache == "int8" or (window is not None and window < BLOCK):
            return min(seq_len, window or seq_len) * self.bytes_per_token("int8")[0]
        first = 0 if window is None else max(0, seq_len - window + 1) // BLOCK * BLOCK
        whole = seq_len // BLOCK * BLOCK
        four, eight = self.bytes_per_token(cache)
        return (whole - first) * four + (seq_len - whole) * eight
