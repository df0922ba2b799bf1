"""How initial weights, multipliers of the forward pass and optimizer values follow a decoder's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nachim.spec.part import Part

Role = Literal["embedding", "hidden", "gain", "last gain", "head"]
"""Of a weight: the table of tokens, a matrix or a gain of a block, the last norm's gain, the output's matrix."""


@dataclass(frozen=True)
class Multipliers:
    """What one weight's learning rate, AdamW eps and weight decay are, times those of the optimizer."""

    lr: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Parametrisation(Part):
    """Base of parametrisations: the rules of CompleteP (arXiv 2505.01618, Table 1, alpha = 1) in two ratios to a base.

    `wider` and `deeper` are width and depth over the base's, m_N and m_L in the table. Where both are 1, as at the
    base itself and in `Standard`, every rule is the standard one.
    """

    def wider(self, d_model: int) -> float:
        """m_N: width over the base's."""
        return 1.0

    def deeper(self, n_layers: int) -> float:
        """m_L: depth over the base's."""
        return 1.0

    def score(self, d_head: int) -> float:
        """Factor on attention's scores q.k beside 1/sqrt(d_head)."""
        return 1.0

    def residual(self, n_layers: int) -> float:
        """Factor on what a sublayer adds to the stream: m_L^-1."""
        return 1 / self.deeper(n_layers)

    def output(self, d_model: int) -> float:
        """Factor on the logits: m_N^-1."""
        return 1 / self.wider(d_model)

    def adamw(self, role: Role, d_model: int, n_layers: int) -> Multipliers:
        """Multipliers of a weight that AdamW moves."""
        wider = self.wider(d_model)
        eps = self.residual(n_layers) / wider
        match role:
            case "hidden":
                return Multipliers(lr=1 / wider, eps=eps, weight_decay=wider)
            case "gain":
                return Multipliers(eps=eps)
            case _:
                return Multipliers()

    def muon(self, d_model: int) -> Multipliers:
        """Multipliers of a block's matrix that Muon moves.

        The spectral norm of an update must not change with width (arXiv 2310.17813, condition 1, for matrices whose
        sides grow together). Muon's, scaled to the root mean square of AdamW's, has lr * 0.2 * sqrt(largest side), so
        m_N^-1/2 is left to correct, where AdamW's, of few directions, needs m_N^-1. Its momentum has no eps.
        """
        root = self.wider(d_model) ** 0.5
        return Multipliers(lr=1 / root, weight_decay=root)


@dataclass(frozen=True, kw_only=True)
class Standard(Parametrisation):
    """Matrices N(0, 1/fan_in), residual outputs a further 1/sqrt(2 n_layers); one learning rate for every weight."""


@dataclass(frozen=True, kw_only=True)
class MuP(Parametrisation):
    """Maximal update (arXiv 2203.03466, Table 8): what is best for a model `base_width` wide is so for wider ones.

    Scores go as 1/d_head and meet the standard ones at heads `base_head` wide. A model as wide as the base, with its
    heads, is the standard one.
    """

    base_width: int
    base_head: int

    def check(self) -> None:
        self.require_positive("base_width", "base_head")

    def wider(self, d_model: int) -> float:
        return d_model / self.base_width

    def score(self, d_head: int) -> float:
        return (self.base_head / d_head) ** 0.5


@dataclass(frozen=True, kw_only=True)
class CompleteP(MuP):
    """MuP in width, and in depth residual branches that count 1/depth (arXiv 2505.01618, Table 1, alpha = 1).

    A model of the base's width, heads and `base_depth` layers is the standard one.
    """

    base_depth: int

    def check(self) -> None:
        super().check()
        self.require_positive("base_depth")

    def deeper(self, n_layers: int) -> float:
        return n_layers / self.base_depth
