"""How the sublayers of a block meet the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class Residual(Part):
    """Base of residual schemes: which norms a block of some sublayers has, and whether one stands before the head."""

    before: ClassVar[bool] = False
    """Whether a sublayer reads a normalised stream."""
    after: ClassVar[bool] = False
    """Whether what a sublayer gives is normalised before it is added."""
    last: ClassVar[bool] = True
    """Whether a norm stands between the last block and the head."""

    def norms(self, sublayers: int) -> int:
        """Norms of a block that has this many sublayers."""
        return sublayers * (self.before + self.after)


@dataclass(frozen=True, kw_only=True)
class PreNorm(Residual):
    """x + f(norm(x)) (arXiv 2002.04745): the stream itself is never normalised."""

    before: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class SandwichNorm(Residual):
    """x + norm(f(norm(x))), as in Gemma-2 (arXiv 2408.00118)."""

    before: ClassVar[bool] = True
    after: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class OutputNorm(Residual):
    """x + norm(f(x)): the norm stands inside the residual branch, after the sublayer (OLMo-2, arXiv 2501.00656)."""

    after: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class PostNorm(Residual):
    """norm(x + f(x)), the first transformer's (arXiv 1706.03762): the stream is normalised, and the head reads it."""

    last: ClassVar[bool] = False

    def norms(self, sublayers: int) -> int:
        return sublayers


@dataclass(frozen=True, kw_only=True)
class Parallel(Residual):
    """x + mixer(norm(x)) + ffn(norm(x)) (GPT-J): both read the same stream; `shared` gives them one norm (Falcon)."""

    shared: bool = False
    before: ClassVar[bool] = True

    def norms(self, sublayers: int) -> int:
        return 1 if self.shared else sublayers
