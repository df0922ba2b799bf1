"""Activations: what a training step keeps of its forward pass, makes again, or moves away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nachim.spec.part import Part

Recompute = Literal["none", "selective", "full"]
"""What of a block is made again: nothing, all but what multiplications and attention gave, or all but its input."""


@dataclass(frozen=True, kw_only=True)
class Activations(Part):
    """What is done with the values that a forward pass leaves for the backward pass. It changes no weight, to the last
    bit, so that it is no part of a `Run`: it is a way of carrying one out."""

    recompute: Recompute = "none"
    """What is made again in the backward pass: norms, activations and products ("selective", arXiv 2205.05198, sec. 5),
    or whole blocks ("full")."""
    every_blocks: int = 1
    """Of so many blocks that are made again in full the first one's input alone is kept (arXiv 1604.06174, sec. 4)."""
    keep_bytes: int | None = None
    """In place of `recompute`: blocks are made again, selectively or in full, until all of them together keep no more
    than so many bytes of a micro-batch, at the least work."""
    offload: bool = False
    """Whether what is kept stands in host memory until it is needed; without a GPU that is where it is anyway."""

    def check(self) -> None:
        self.require_positive("every_blocks")
        if self.every_blocks > 1 and self.recompute != "full":
            self.refuse("every_blocks", f"is {self.every_blocks}, which is for recompute='full'")
        if self.keep_bytes is not None:
            self.require_positive("keep_bytes")
            if self.recompute != "none":
                self.refuse("keep_bytes", f"chooses what is made again: leave out recompute={self.recompute!r}")
