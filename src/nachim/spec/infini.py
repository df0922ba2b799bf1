"""Attention with a compressive memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nachim.spec.cost import Matrix, Mixer, Saved


@dataclass(frozen=True, kw_only=True)
class InfiniAttention(Mixer):
    """Softmax attention within segments, and a linear memory of the segments before (arXiv 2404.07143, sec. 2.1).

    Segments of `segment` tokens count from the beginning of each document. At the end of one, its keys and values go
    into a memory of `d_head` x (`d_head` + 1) values for each of `n_kv_heads` heads: all of each value ("linear"), or
    only what the memory does not say already ("delta"). Each of `n_heads` heads mixes what it finds in both by its own
    gate. Positions turn queries and keys of the local attention alone.
    """

    n_heads: int
    n_kv_heads: int
    d_head: int
    segment: int = 2048
    update: Literal["linear", "delta"] = "delta"

    def check(self) -> None:
        self.require_positive("n_heads", "n_kv_heads", "d_head", "segment")
        if self.n_heads % self.n_kv_heads:
            self.refuse("n_kv_heads", f"is {self.n_kv_heads}; it must divide n_heads={self.n_heads}")

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        queries, keys = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        return (
            Matrix(d_model, queries, split="columns", pieces=self.n_heads),
            Matrix(d_model, 2 * keys, split="columns", pieces=self.n_kv_heads),
            Matrix(queries, d_model, split="rows", pieces=self.n_heads),
        )

    def vectors(self, d_model: int) -> int:
        return self.n_heads

    def saved(self, d_model: int) -> Saved:
        """As torch's autograd keeps them, the memory before each segment and what the segment writes among them."""
        queries, keys, delta = self.n_heads * self.d_head, self.n_kv_heads * self.d_head, self.update == "delta"
        remade, sums = 4 * queries + 3 * keys, 4 * self.n_heads + (1 + 3 * delta) * self.n_kv_heads
        memories = (1 + delta) * self.n_kv_heads * self.memory / self.segment
        split = 3 * queries + (2 + delta) * keys + remade + sums + memories
        return Saved(whole=2 * d_model, cheap_whole=d_model, split=split, cheap_split=remade)

    @property
    def memory(self) -> int:
        """Values of one head's memory: key-value products, and the sum of keys that normalises them."""
        return self.d_head * (self.d_head + 1)

    def keys(self, seq_len: float, causal: bool = False) -> float:
        """Keys of its own segment a token meets, averaged: all, or only those not after it."""
        if not causal:
            return min(self.segment, seq_len)
        full, left = divmod(seq_len, self.segment)
        return (full * self.segment * (self.segment + 1) + left * (left + 1)) / (2 * seq_len)

    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        return 4 * self.n_heads * self.d_head * self.keys(seq_len, causal) + self._memory_flops

    @property
    def _memory_flops(self) -> int:
        """Every value of the memory read by queries, written by keys, and with "delta" met by keys first."""
        writes = 1 + (self.update == "delta")
        return 2 * self.memory * (self.n_heads + writes * self.n_kv_heads)

    def decode_flops(self, position: float) -> float:
        met = (position - 1) % self.segment + 1
        return 4 * self.n_heads * self.d_head * met + self._memory_flops

    def cache_values(self, seq_len: float) -> float:
        """Keys and values of a segment at most, the memory, and what the present segment will add to it."""
        local = 2 * self.d_head * min(self.segment, seq_len)
        return self.n_kv_heads * local + self.wide_values(seq_len)

    def wide_values(self, seq_len: float) -> float:
        return self.n_kv_heads * 2 * self.memory

    @property
    def cache_pieces(self) -> int:
        return self.n_kv_heads

    @property
    def turned(self) -> int:
        return self.d_head
