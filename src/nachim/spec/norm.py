"""Normalisation parts."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class Norm(Part):
    """Base of normalisations."""

    eps: float = 1e-6

    def check(self) -> None:
        self.require_positive("eps")

    def params(self, width: int) -> int:
        """One gain a channel."""
        return width


@dataclass(frozen=True, kw_only=True)
class RMSNorm(Norm):
    """Root-mean-square normalisation with a gain (arXiv 1910.07467), before each sublayer and before the head."""


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Norm):
    """Mean and variance normalised, with gain and bias (arXiv 1607.06450)."""

    def params(self, width: int) -> int:
        """A gain and a bias a channel."""
        return 2 * width
