"""Position parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nachim.spec.part import Part, later
from nachim.spec.scaling import Scaling


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

    def misfit(self, n_heads: int | None, width: int | None) -> str | None:
        """Why it cannot serve a mixer of which `n_heads` are scored and `width` channels turned (see `Mixer`).

        None where it can; else what follows "this mixer ...".
        """
        return None


@dataclass(frozen=True, kw_only=True)
class NoPosition(Position):
    """No position at all: the causal mask, or a recurrent mixer, tells the order (NoPE, arXiv 2305.19466)."""


@dataclass(frozen=True, kw_only=True)
class RoPE(Position):
    """Rotary position embedding (arXiv 2104.09864): pairs of channels turn by position * theta^(-2i/d_head).

    Where `dim` is given only the first `dim` channels of a head turn, as if they were the head (GPT-NeoX, Phi-3).
    `scaling` changes the frequencies for long contexts. Positions of three axes turn by the first.
    """

    theta: float = 10_000.0
    dim: int | None = later(None)
    scaling: Scaling | None = later(None)

    def check(self) -> None:
        self.require_positive("theta")
        if self.dim is not None and (self.dim < 1 or self.dim % 2):
            self.refuse("dim", f"is {self.dim}; pairs turn, so it must be even and above 0")
        if self.scaling is not None and self.theta <= 1:
            self.refuse("theta", f"is {self.theta}; scaling needs pairs that turn at different speeds: above 1")

    def turned(self, width: int) -> int:
        """Channels that turn of a head's `width`."""
        return width if self.dim is None else self.dim

    def misfit(self, n_heads: int | None, width: int | None) -> str | None:
        if width is None:
            return None
        if self.dim is None and width % 2:
            return f"has d_head={width}; RoPE turns pairs, so it must be even"
        if self.turned(width) > width:
            return f"has heads of {width} channels to turn; RoPE.dim={self.dim} is more than that"
        return None if self.scaling is None else self.scaling.misfit(self.turned(width) // 2)


@dataclass(frozen=True, kw_only=True)
class MRoPE(RoPE):
    """RoPE of three axes, time, height and width (Qwen2-VL, arXiv 2409.12191, sec. 2.1).

    Of the pairs that turn, fastest first, `sections` turn by each axis. With one position for all three, as text has,
    it is RoPE.
    """

    sections: tuple[int, ...]

    def check(self) -> None:
        super().check()
        if len(self.sections) != 3 or min(self.sections) < 0:
            self.refuse("sections", f"is {self.sections}; it must be three counts of pairs: time, height, width")

    def misfit(self, n_heads: int | None, width: int | None) -> str | None:
        why = super().misfit(n_heads, width)
        if why is None and width is not None and 2 * sum(self.sections) != self.turned(width):
            why = f"has heads of {self.turned(width) // 2} pairs to turn; MRoPE.sections={self.sections} must fill them"
        return why


@dataclass(frozen=True, kw_only=True)
class ALiBi(Position):
    """Scores fall with distance, each head at its own slope (arXiv 2108.12409, sec. 3).

    Head h of n has the slope 2^(-steepness h / n). Where n is no power of two, the slopes are those of the next lower
    power, then every other one of the next higher, as in BLOOM and MPT. All are multiplied by `factor`; with `rounded`
    slopes, positions and their products have the eight bits of bfloat16 (both in Falcon).
    """

    steepness: float = 8.0
    factor: float = later(1.0)
    rounded: bool = later(False)

    def check(self) -> None:
        self.require_positive("steepness", "factor")

    def misfit(self, n_heads: int | None, width: int | None) -> str | None:
        if n_heads is None and width is not None:
            return "adds no bias to its scores, as ALiBi asks for; give its layers RoPE, or no position"
        return None


@dataclass(frozen=True, kw_only=True)
class FIRE(Position):
    """A learned bias of each head on the ratio of distance to position (arXiv 2310.04418, sec. 3).

    f(psi(i - j) / psi(max(L, i))) with psi(x) = ln(c x + 1), f a ReLU network of one layer of `width` values, for a
    query at i and a key at j; c and L are learned from `c` and `length` on, in every layer anew. f's last constant,
    which no softmax sees, is left out. f is a line between the bends of its units, and is computed as one: a few
    elementwise FLOP a head, query and key, which are not part of M.
    """

    n_heads: int
    width: int = 32
    c: float = 0.1
    length: float = 512.0

    def check(self) -> None:
        self.require_positive("n_heads", "width", "c", "length")

    def layer_params(self) -> int:
        return 2 + 2 * self.width + self.n_heads * self.width

    def misfit(self, n_heads: int | None, width: int | None) -> str | None:
        if n_heads is None:
            return "has a mixer without scores; FIRE is a bias on those of heads: give its layers another position"
        return None if n_heads == self.n_heads else f"has n_heads={n_heads}; FIRE.n_heads={self.n_heads} must equal it"


@dataclass(frozen=True, kw_only=True)
class Learned(Position):
    """A table of `length` positions, added to the embedding (GPT-2)."""

    added: ClassVar[bool] = True

    length: int

    def check(self) -> None:
        self.require_positive("length")

    def params(self, d_model: int) -> int:
        return self.length * d_model


@dataclass(frozen=True, kw_only=True)
class Sinusoidal(Position):
    """Sines and cosines of fixed frequencies, added to the embedding (arXiv 1706.03762, sec. 3.5)."""

    added: ClassVar[bool] = True
