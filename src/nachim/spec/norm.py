"""Normalisation parts."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.part import Part, later


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
    """Root-mean-square normalisation with a gain (arXiv 1910.07467).

    `offset` stores the gain's distance from 1, in place of the gain, so that weight decay pulls it to 1 (Gemma).
    """

    offset: bool = later(False)


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Norm):
    """Mean and variance normalised, with a gain and, unless without `bias` (MPT), a bias (arXiv 1607.06450)."""

    bias: bool = later(True)

    def params(self, width: int) -> int:
        """A gain and a bias a channel."""
        return (1 + self.bias) * width
