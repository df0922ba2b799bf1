"""Feed-forward parts: what they are, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nachim.spec.cost import FFN, Matrix, Saved
from nachim.spec.part import later


@dataclass(frozen=True, kw_only=True)
class MLP(FFN):
    """down(activation(up(x))): ReLU, its square (arXiv 2109.08668), GELU (arXiv 1606.08415) or its approximation."""

    d_ff: int
    activation: Literal["relu", "relu2", "gelu", "gelu_tanh"] = "gelu"
    bias: bool = False

    def check(self) -> None:
        self.require_positive("d_ff")

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        return Matrix(d_model, self.d_ff, split="columns"), Matrix(self.d_ff, d_model, split="rows")

    def vectors(self, d_model: int) -> int:
        return (self.d_ff + d_model) * self.bias

    def saved(self, d_model: int) -> Saved:
        return Saved(whole=2 * d_model, cheap_whole=d_model, split=2 * self.d_ff, cheap_split=self.d_ff)


@dataclass(frozen=True, kw_only=True)
class Gated(FFN):
    """Base of gated feed-forwards: down(activation(gate(x)) * up(x)), each of the three with a bias where asked."""

    d_ff: int
    bias: bool = later(False)

    def check(self) -> None:
        self.require_positive("d_ff")

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        return Matrix(d_model, 2 * self.d_ff, split="columns"), Matrix(self.d_ff, d_model, split="rows")

    def vectors(self, d_model: int) -> int:
        return (2 * self.d_ff + d_model) * self.bias

    def saved(self, d_model: int) -> Saved:
        return Saved(whole=2 * d_model, cheap_whole=d_model, split=4 * self.d_ff, cheap_split=2 * self.d_ff)


@dataclass(frozen=True, kw_only=True)
class SwiGLU(Gated):
    """Gated by SiLU: down(silu(gate(x)) * up(x)) (arXiv 2002.05202, eq. 6)."""


@dataclass(frozen=True, kw_only=True)
class GeGLU(Gated):
    """Gated by GELU (arXiv 2002.05202, eq. 6): its tanh approximation, as in Gemma, or the `exact` form."""

    exact: bool = later(False)


@dataclass(frozen=True, kw_only=True)
class MoE(FFN):
    """Mixture of SwiGLU experts of width `d_ff`: a router sends each token to `active` of `experts` (arXiv 2401.04088).

    `shared` more experts of that width serve every token (DeepSeekMoE, arXiv 2401.06066); many narrow experts are
    the fine-grained form. `shared_gate` weighs them by a gate of their own (Qwen-MoE).
    """

    d_ff: int
    experts: int
    active: int
    shared: int = 0
    shared_gate: bool = False

    def check(self) -> None:
        self.require_positive("d_ff", "experts", "active")
        if self.active > self.experts:
            self.refuse("active", f"is {self.active}; there are only experts={self.experts}")
        if self.shared < 0:
            self.refuse("shared", f"is {self.shared}; it must not be negative")

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        routed = {"count": self.experts, "used": self.active, "expert": True}
        found = [
            Matrix(d_model, self.experts),
            Matrix(d_model, 2 * self.d_ff, split="columns", **routed),
            Matrix(self.d_ff, d_model, split="rows", **routed),
        ]
        if self.shared:
            width = self.shared * self.d_ff
            found += [Matrix(d_model, 2 * width, split="columns"), Matrix(width, d_model, split="rows")]
        if self.shared_gate:
            found.append(Matrix(d_model, 1))
        return tuple(found)

    def routed(self, d_model: int) -> Saved:
        """What the experts a token is sent to keep: it is gathered once for each of them, and scattered back."""
        width = self.active * self.d_ff
        return Saved(whole=2 * self.active * d_model, split=4 * width, cheap_split=2 * width)

    def saved(self, d_model: int) -> Saved:
        width = self.shared * self.d_ff
        here = Saved(whole=2 * d_model + 2 * self.experts, cheap_whole=d_model, split=4 * width, cheap_split=2 * width)
        return here + self.routed(d_model)
