"""Position parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class Position(Part):
    """Base of how a model knows the order of its tokens."""

    added: ClassVar[bool] = False
    """Whether it is added to the embedded tokens, once, instead of working inside each layer."""

    def params(self, d_model: int) -> int:
        """Parameters of its tables; counted with the embedding."""
        return 0

    def layer_params(self) -> int:
        """Parameters it has in every layer that uses it."""
        return 0


@dataclass(frozen=True, kw_only=True)
class NoPosition(Position):
    """No position at all: the causal mask, or a recurrent mixer, tells the order (NoPE, arXiv 2305.19466)."""


@dataclass(frozen=True, kw_only=True)
class RoPE(Position):
    """Rotary position embedding (arXiv 2104.09864): pairs of channels turn by position * theta^(-2i/d_head)."""

    theta: float = 10_000.0

    def check(self) -> None:
        self.require_positive("theta")


@dataclass(frozen=True, kw_only=True)
class Learned(Position):
    """A table of `length` positions, added to the embedding (GPT-2)."""

    added: ClassVar[bool] = True

    length: int

    def check(self) -> None:
        self.require_positive("length")

    def params(self, d_model: int) -> int:
        return self.length * d_model
