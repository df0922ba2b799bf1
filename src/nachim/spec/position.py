"""Position parts."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class RoPE(Part):
    """Rotary position embedding (arXiv 2104.09864): pairs of channels turn by position * theta^(-2i/d_head)."""

    theta: float = 10_000.0

    def check(self) -> None:
        self.require_positive("theta")
