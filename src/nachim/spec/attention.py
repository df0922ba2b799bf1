"""Attention parts and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class Attention(Part):
    """Causal softmax attention with grouped keys and values (arXiv 2305.13245).

    `n_kv_heads == n_heads` is multi-head attention, `n_kv_heads == 1` multi-query. `qk_norm` normalises every query and
    key head with an RMSNorm of its own (arXiv 2302.05442), which keeps logits bounded at high learning rates.
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

    def check(self) -> None:
        self.require_positive("n_heads", "n_kv_heads", "d_head")
        if self.n_heads % self.n_kv_heads:
            self.refuse("n_kv_heads", f"is {self.n_kv_heads}; it must divide n_heads={self.n_heads}")

    def matmul_params(self, d_model: int) -> int:
        """Parameters that multiply every token: the query, key, value and output projections."""
        heads = 2 * self.n_heads + (2 + self.previous_key) * self.n_kv_heads
        return d_model * self.d_head * heads

    def params(self, d_model: int) -> int:
        """All parameters, the gains of `qk_norm` included."""
        return self.matmul_params(d_model) + 2 * self.d_head * self.qk_norm

    def flops_per_token(self, d_model: int, seq_len: int) -> int:
        """Training FLOP/token, scores and mixing over the whole context included (DeepSeek LLM, arXiv 2401.02954)."""
        return 6 * self.matmul_params(d_model) + 12 * self.n_heads * self.d_head * seq_len

    def cache_bytes(self, seq_len: int, value_bytes: int = 2) -> int:
        """Bytes of keys and values kept for one sequence of `seq_len` tokens."""
        return 2 * self.n_kv_heads * self.d_head * seq_len * value_bytes
