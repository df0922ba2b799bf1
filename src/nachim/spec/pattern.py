"""Layers that differ: a repeating pattern of parts, and layers that only some tokens pass through."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.part import Part, later


@dataclass(frozen=True, kw_only=True)
class Pattern(Part):
    """Parts that take turns over the layers: `first` once, then `parts` again and again until the layers are filled.

    `Pattern(parts=(local, local, full))` alternates; `Pattern(first=(SwiGLU(...),), parts=(MoE(...),))` begins
    with one dense layer.
    """

    parts: tuple[Part, ...]
    first: tuple[Part, ...] = ()

    def check(self) -> None:
        if not self.parts:
            self.refuse("parts", "is empty; a pattern needs at least one part")

    def over(self, n_layers: int) -> tuple[Part, ...]:
        """The part of each of `n_layers` layers. Raises UserError when the pattern does not fill them evenly."""
        times, left = divmod(n_layers - len(self.first), len(self.parts))
        if left or times < 1:
            self.refuse(
                "parts",
                f"has {len(self.parts)} after {len(self.first)} at the beginning; "
                f"they do not fill {n_layers} layers evenly",
            )
        return self.first + self.parts * times


@dataclass(frozen=True, kw_only=True)
class MixtureOfDepths(Part):
    """In every `every`-th block only a share `capacity` of the tokens, chosen by a router, is worked on.

    The others pass it by (arXiv 2404.02258). A token worked on attends to the tokens worked on. In training they are
    the share of a sequence that the router scores highest; a token that is read or written is worked on where its own
    score is above 0. `causal_loss` is the factor of the auxiliary loss that makes the two the same (sec. 3.5).
    """

    capacity: float = 0.125
    every: int = 2
    causal_loss: float = later(0.01)

    def check(self) -> None:
        self.require_positive("every")
        if not 0 < self.capacity <= 1:
            self.refuse("capacity", f"is {self.capacity}; it must be above 0 and at most 1")
        if self.causal_loss < 0:
            self.refuse("causal_loss", f"is {self.causal_loss}; it must not be negative")

    def share(self, layer: int) -> float:
        """Share of the tokens that layer number `layer`, from 0, works on."""
        return self.capacity if (layer + 1) % self.every == 0 else 1.0
