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
    """Mixture of SwiGLU experts of width `d_ff`: a router sends each token to `active` of `experts`; none is dropped.

    `shared` more experts of that width serve every token (DeepSeekMoE, arXiv 2401.06066); many narrow experts are
    the fine-grained form. `shared_gate` weighs them by a gate of their own (Qwen-MoE).

    An expert's answer counts by its score: softmax over all experts, or each its own sigmoid (DeepSeek-V3,
    arXiv 2412.19437, eq. 15). `renormalise` makes the scores of a token's experts add up to 1 (Mixtral, arXiv
    2401.04088); None means: where they are several, for a sole expert's score must stay what it is, or its router would
    learn nothing (Switch, arXiv 2101.03961, eq. 2). `scale` multiplies them. With `groups` of experts a token goes to
    experts of its `top_groups` best ones only, by each group's best expert ("max", DeepSeek-V2, arXiv 2405.04434,
    sec. 2.2.2) or the sum of its best two ("top2", DeepSeek-V3).

    With `bias` the router and all matrices of experts have biases. With `limit` an expert is that of gpt-oss (arXiv
    2508.10925): down((up(x) + 1) * g * sigmoid(1.702 g)), g = gate(x) not above the limit, up(x) within +-limit.

    Three things keep the loads of experts even. `bias_step` u: a bias on each score, for the choice alone, moves by u
    towards the mean load after every step (arXiv 2408.15664); 0 leaves it as it is. With `bias_by` "share" it moves by
    u times the share of the mean that its load is off by: it settles where fixed steps go on. `balance_loss` is the
    factor of an auxiliary loss (arXiv 2101.03961, eq. 4) over all tokens, or, averaged, over those of each sequence
    (arXiv 2412.19437, eq. 17). `z_loss` is that of the router's squared log-partition (arXiv 2202.08906, eq. 5).
    """

    d_ff: int
    experts: int
    active: int
    shared: int = 0
    shared_gate: bool = False
    scores: Literal["softmax", "sigmoid"] = later("softmax")
    renormalise: bool | None = later(None)
    scale: float = later(1.0)
    groups: int = later(1)
    top_groups: int = later(1)
    group_score: Literal["max", "top2"] = later("max")
    bias_step: float | None = later(None)
    bias_by: Literal["sign", "share"] = later("sign")
    balance_loss: float = later(0.0)
    balance_over: Literal["batch", "sequence"] = later("batch")
    z_loss: float = later(0.0)
    bias: bool = later(False)
    limit: float | None = later(None)

    def check(self) -> None:
        self.require_positive("d_ff", "experts", "active", "scale", "groups", "top_groups")
        if self.limit is not None:
            self.require_positive("limit")
        if self.active > self.experts:
            self.refuse("active", f"is {self.active}; there are only experts={self.experts}")
        for name in ("shared", "bias_step", "balance_loss", "z_loss"):
            if (getattr(self, name) or 0) < 0:
                self.refuse(name, f"is {getattr(self, name)}; it must not be negative")
        if self.bias_by != "sign" and self.bias_step is None:
            self.refuse("bias_by", f"is {self.bias_by!r}, which needs a bias_step")
        if self.shared_gate and not self.shared:
            self.refuse("shared_gate", "is set without shared experts; set shared, or leave it out")
        if self.shared and (self.bias or self.limit is not None):
            self.refuse("shared", f"is {self.shared}; shared experts have neither bias nor limit")
        self._check_groups()

    def _check_groups(self) -> None:
        size, left = divmod(self.experts, self.groups)
        if left:
            self.refuse("groups", f"is {self.groups}; it must divide experts={self.experts}")
        if self.top_groups > self.groups:
            self.refuse("top_groups", f"is {self.top_groups}; there are only groups={self.groups}")
        if self.active > self.top_groups * size:
            self.refuse("active", f"is {self.active}; top_groups={self.top_groups} of {size} experts hold fewer")
        if self.group_score == "top2" and size < 2:
            self.refuse("group_score", f"is 'top2'; groups={self.groups} leaves one expert in each")

    @property
    def renormalised(self) -> bool:
        """Whether the scores of a token's experts are made to add up to 1."""
        return self.active > 1 if self.renormalise is None else self.renormalise

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

    def vectors(self, d_model: int) -> int:
        return self.bias * self.experts * (1 + 2 * self.d_ff + d_model)

    def params_active(self, d_model: int) -> int:
        idle = self.bias * (self.experts - self.active) * (2 * self.d_ff + d_model)
        return super().params_active(d_model) - idle

    def routed(self, d_model: int) -> Saved:
        """What the experts a token is sent to keep: it is gathered once for each of them, and scattered back.

        With a limit that is, beside gate and up: both clipped, the sigmoid, the gate times it, and the product.
        """
        width = self.active * self.d_ff
        remade = 2 if self.limit is None else 5
        return Saved(whole=2 * self.active * d_model, split=(2 + remade) * width, cheap_split=remade * width)

    def saved(self, d_model: int) -> Saved:
        width = self.shared * self.d_ff
        here = Saved(whole=2 * d_model + 2 * self.experts, cheap_whole=d_model, split=4 * width, cheap_split=2 * width)
        return here + self.routed(d_model)
