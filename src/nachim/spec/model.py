"""The decoder as a value, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.attention import Attention
from nachim.spec.ffn import SwiGLU
from nachim.spec.norm import RMSNorm
from nachim.spec.part import Part
from nachim.spec.position import RoPE


@dataclass(frozen=True, kw_only=True)
class Decoder(Part):
    """A pre-norm decoder: embedding, `n_layers` blocks of attention and feed-forward, norm, head.

    Counts follow the house's vocabulary: `flops_per_token` (M) leaves the head out, `head_flops_per_token` is the head.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    attention: Attention
    ffn: SwiGLU
    norm: RMSNorm = RMSNorm()
    position: RoPE = RoPE()
    tied: bool = False

    def check(self) -> None:
        self.require_positive("vocab_size", "d_model", "n_layers")
        if self.attention.d_head % 2:
            self.refuse("attention", f"has d_head={self.attention.d_head}; RoPE turns pairs, so it must be even")

    @property
    def params_non_embedding(self) -> int:
        """Parameters of the blocks and the final norm: neither embedding nor head."""
        block = self.attention.params(self.d_model) + self.ffn.params(self.d_model)
        norms = (2 * self.n_layers + 1) * self.norm.params(self.d_model)
        return self.n_layers * block + norms

    @property
    def params_total(self) -> int:
        """Every parameter; a tied head is counted once."""
        tables = 1 if self.tied else 2
        return self.params_non_embedding + tables * self.vocab_size * self.d_model

    @property
    def params_active(self) -> int:
        """Parameters that take part in every token: all of them in a dense decoder."""
        return self.params_total

    def flops_per_token(self, seq_len: int) -> int:
        """M: non-embedding training FLOP/token; 72 L d^2 + 12 L d s for the plain block (arXiv 2401.02954, eq. 2)."""
        attention = self.attention.flops_per_token(self.d_model, seq_len)
        return self.n_layers * (attention + self.ffn.flops_per_token(self.d_model))

    @property
    def head_flops_per_token(self) -> int:
        """Training FLOP/token of the output head alone."""
        return 6 * self.d_model * self.vocab_size

    def cache_bytes(self, seq_len: int, value_bytes: int = 2) -> int:
        """Bytes of cached keys and values for one sequence, over all layers."""
        return self.n_layers * self.attention.cache_bytes(seq_len, value_bytes)


def plain(*, d_model: int, n_layers: int, d_head: int, vocab_size: int) -> Decoder:
    """The plain block of the scaling literature: multi-head attention and a SwiGLU of width about 8/3 d_model.

    `d_ff` is 8/3 d_model rounded to a multiple of 8. Raises UserError when `d_head` does not divide `d_model`.
    """
    n_heads, left = divmod(d_model, d_head)
    attention = Attention(n_heads=max(1, n_heads), n_kv_heads=max(1, n_heads), d_head=d_head)
    if left or not n_heads:
        attention.refuse("d_head", f"is {d_head}; it must divide d_model={d_model}")
    ffn = SwiGLU(d_ff=round(d_model / 3) * 8)
    return Decoder(vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, attention=attention, ffn=ffn)
