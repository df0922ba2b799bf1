"""Softmax attention: what it is, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nachim.spec.cached import Paged
from nachim.spec.cost import Matrix, Mixer, Saved
from nachim.spec.part import later


@dataclass(frozen=True, kw_only=True)
class Attention(Mixer):
    """Causal softmax attention with grouped keys and values (arXiv 2305.13245).

    `n_kv_heads == n_heads` is multi-head attention, `n_kv_heads == 1` multi-query. `qk_norm` normalises queries and
    keys with RMSNorms of their own, which keeps logits bounded at high learning rates: every head by itself (arXiv
    2302.05442), or, with `qk_norm_over="all"`, the whole projection across its heads (OLMo-2, arXiv 2501.00656);
    `qk_norm_offset` stores the gains' distance from 1 (Gemma-3). A score is q.k times `scale`, 1/sqrt(d_head) unless
    given; `softcap` then bounds it, softcap * tanh(score / softcap) (Gemma-2, arXiv 2408.00118). With `sinks` a head
    has one learned logit more in its softmax, which takes weight and gives no value (gpt-oss, arXiv 2508.10925).
    `window` lets a token see itself and the `window - 1` tokens before it only (arXiv 2004.05150). `bias` stands on the
    query, key and value projections ("qkv") or on the output's too ("all").
    `previous_key` adds to every key a projection of the token before it: one layer can then find "the last time I saw
    this token" and copy what followed. It is the smeared key of arXiv 2209.11895 with a matrix of its own in place of a
    scalar gate; copying then appears early in training instead of as a late, sudden change that no law
    fitted before it foresees (ideas/quickstart_recipe.md).
    """

    n_heads: int
    n_kv_heads: int
    d_head: int
    qk_norm: bool = False
    previous_key: bool = False
    window: int | None = None
    bias: Literal["none", "qkv", "all"] = "none"
    softcap: float | None = later(None)
    scale: float | None = later(None)
    sinks: bool = later(False)
    qk_norm_over: Literal["head", "all"] = later("head")
    qk_norm_offset: bool = later(False)
    qk_norm_eps: float = later(1e-6)

    def check(self) -> None:
        self.require_positive("n_heads", "n_kv_heads", "d_head", "qk_norm_eps")
        for name in ("softcap", "scale"):
            if getattr(self, name) is not None:
                self.require_positive(name)
        if self.n_heads % self.n_kv_heads:
            self.refuse("n_kv_heads", f"is {self.n_kv_heads}; it must divide n_heads={self.n_heads}")
        if self.window is not None and self.window < 1:
            self.refuse("window", f"is {self.window}; it must be at least 1, or None for the whole context")
        for name in ("qk_norm_over", "qk_norm_offset"):
            if not self.qk_norm and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                self.refuse(name, f"is {getattr(self, name)!r}, which needs qk_norm=True")

    @property
    def factor(self) -> float:
        """What q.k is multiplied by."""
        return self.d_head**-0.5 if self.scale is None else self.scale

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        queries, keys = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        return (
            Matrix(d_model, queries, split="columns", pieces=self.n_heads),
            Matrix(d_model, (2 + self.previous_key) * keys, split="columns", pieces=self.n_kv_heads),
            Matrix(queries, d_model, split="rows", pieces=self.n_heads),
        )

    def vectors(self, d_model: int) -> int:
        qkv = (self.n_heads + (2 + self.previous_key) * self.n_kv_heads) * self.d_head
        biases = {"none": 0, "qkv": qkv, "all": qkv + d_model}[self.bias]
        gains = 2 if self.qk_norm_over == "head" else self.n_heads + self.n_kv_heads
        return biases + gains * self.d_head * self.qk_norm + self.n_heads * self.sinks

    def saved(self, d_model: int) -> Saved:
        """As torch's autograd keeps them: the projections as one tensor, which the values are a view of, then queries
        and keys as they enter the kernel, its sums (one a head), and its output as heads and as rows."""
        queries, keys = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        projected = queries + (2 + self.previous_key) * keys
        shifted = keys * (self.previous_key and self.qk_norm)
        remade = queries + keys + shifted + queries
        return Saved(
            whole=2 * d_model,
            cheap_whole=d_model,
            split=projected + remade + queries + self.n_heads,
            cheap_split=remade,
            normed=(queries + keys) * self.qk_norm,
        )

    def keys(self, seq_len: float, causal: bool = False) -> float:
        """Keys a token meets, averaged over the sequence: all that its window admits, or only those not after it."""
        seen = min(self.window or seq_len, seq_len)
        return seen * (1 - (seen - 1) / (2 * seq_len)) if causal else seen

    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        return 4 * self.n_heads * self.d_head * self.keys(seq_len, causal)

    def cache_values(self, seq_len: float) -> float:
        """Keys and values that the window still admits; for the next key also the last token's own projection."""
        return self.n_kv_heads * self.d_head * (2 * self.keys(seq_len) + self.previous_key)

    @property
    def paged(self) -> tuple[Paged, ...]:
        return tuple(Paged(self.n_kv_heads, self.d_head, channels) for channels in (True, False))

    def paged_tokens(self, seq_len: float) -> float:
        return self.keys(seq_len)

    @property
    def cache_pieces(self) -> int:
        return self.n_kv_heads

    @property
    def turned(self) -> int:
        return self.d_head

    @property
    def scored(self) -> int:
        return self.n_heads


@dataclass(frozen=True, kw_only=True)
class MLA(Mixer):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, sec. 2.1) with decoupled RoPE.

    A token's keys and values are rebuilt from `rank` cached values; `rope_dim` more, shared by all heads, carry the
    position. `d_head` is the width of a key without position, `d_value` that of a value (`d_head` unless given).
    Queries pass through `q_rank` values, or come straight from the token where it is None. Decoding absorbs the
    rebuilding matrices into query and output: heads then meet the latent itself, and nothing is rebuilt.
    `eps` is that of the norms on the narrow values. Where YaRN extends the context it may put a factor on the scores.
    """

    n_heads: int
    d_head: int
    rank: int
    rope_dim: int
    q_rank: int | None = None
    d_value: int | None = None
    eps: float = later(1e-6)

    def check(self) -> None:
        self.require_positive("n_heads", "d_head", "rank", "rope_dim", "eps")
        for name in ("q_rank", "d_value"):
            if getattr(self, name) is not None:
                self.require_positive(name)
        if self.rope_dim % 2:
            self.refuse("rope_dim", f"is {self.rope_dim}; RoPE turns pairs, so it must be even")

    @property
    def key_width(self) -> int:
        """Width of one head's query or key, position included."""
        return self.d_head + self.rope_dim

    @property
    def value_width(self) -> int:
        """Width of one head's value."""
        return self.d_value or self.d_head

    @property
    def factor(self) -> float:
        """What q.k is multiplied by."""
        return self.key_width**-0.5

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        queries = self.n_heads * self.key_width
        heads = {"pieces": self.n_heads}
        asked = (
            (Matrix(d_model, queries, split="columns", **heads),)
            if self.q_rank is None
            else (Matrix(d_model, self.q_rank), Matrix(self.q_rank, queries, split="columns", **heads))
        )
        return (
            *asked,
            Matrix(d_model, self.rank + self.rope_dim),
            Matrix(self.rank, self.n_heads * (self.d_head + self.value_width), split="columns", **heads),
            Matrix(self.n_heads * self.value_width, d_model, split="rows", **heads),
        )

    def vectors(self, d_model: int) -> int:
        return self.rank + (self.q_rank or 0)

    def saved(self, d_model: int) -> Saved:
        """As torch's autograd keeps them: narrow values before and after their norms, queries and keys as they enter
        the kernel, what keys and values are rebuilt as (which the values are a view of), the kernel's sums, and its
        output as heads and as rows."""
        normed = self.rank + (self.q_rank or 0)
        again = self.n_heads * (self.key_width + self.value_width)
        rebuilt = self.n_heads * (self.d_head + self.value_width)
        return Saved(
            whole=2 * d_model + 2 * normed + self.rope_dim,
            cheap_whole=d_model + normed,
            split=self.n_heads * self.key_width + rebuilt + again + self.n_heads * (self.value_width + 1),
            cheap_split=again,
            normed=normed,
        )

    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        keys = (seq_len + 1) / 2 if causal else seq_len
        return 2 * self.n_heads * (self.key_width + self.value_width) * keys

    def decode_flops(self, position: float) -> float:
        """The absorbed form: scores over latent and position, mixing over the latent."""
        return 2 * self.n_heads * (2 * self.rank + self.rope_dim) * position

    def cache_values(self, seq_len: float) -> float:
        return (self.rank + self.rope_dim) * seq_len

    @property
    def paged(self) -> tuple[Paged, ...]:
        return (Paged(1, self.rank + self.rope_dim, channels=True),)

    @property
    def turned(self) -> int:
        return self.rope_dim

    @property
    def scored(self) -> int:
        return self.n_heads
