"""Feed-forward parts and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class SwiGLU(Part):
    """Gated feed-forward: down(silu(gate(x)) * up(x)) (arXiv 2002.05202, eq. 6)."""

    d_ff: int

    def check(self) -> None:
        self.require_positive("d_ff")

    def params(self, d_model: int) -> int:
        """Gate, up and down projections."""
        return 3 * d_model * self.d_ff

    def flops_per_token(self, d_model: int) -> int:
        """Training FLOP/token: two for a multiply-add, three passes (forward, and two backward)."""
        return 6 * self.params(d_model)
