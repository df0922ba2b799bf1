"""What a part of a block declares, and every cost that follows from it: parameters, FLOPs, kept values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from nachim.spec.cached import Cached, Paged
from nachim.spec.part import Part

WIDE_BYTES = 4
"""Of a value that is kept in fp32 at least."""


@dataclass(frozen=True)
class Matrix:
    """Weights [rows, columns] that tokens are multiplied by: `count` of them stand there, a token meets `used`.

    `split` is the axis along which tensor parallelism cuts it: "columns" (its outputs), "rows" (its inputs: results
    are then summed over the devices) or None (every device holds it whole). It is cut into `pieces` at most: more
    devices than heads hold copies. `expert` matrices can also be dealt out whole, by `count`.
    """

    rows: int
    columns: int
    count: int = 1
    used: int = 1
    split: Literal["columns", "rows"] | None = None
    pieces: int | None = None
    expert: bool = False

    @property
    def params(self) -> int:
        """Parameters of all of them."""
        return self.rows * self.columns * self.count

    @property
    def params_used(self) -> int:
        """Parameters a token is multiplied by: two FLOP each in a forward pass."""
        return self.rows * self.columns * self.used

    def params_on_device(self, tp: int, ep: int = 1) -> float:
        """Parameters one device holds when `tp` devices cut every matrix and `ep` deal out the experts."""
        ways = min(tp, self.pieces or tp) if self.split else 1
        return self.params / ways / (ep if self.expert else 1)


@dataclass(frozen=True)
class Saved:
    """Values a token leaves behind for the backward pass, in the precision of the matrix multiplications.

    `whole` stand on every device of a tensor-parallel group (sequence parallelism cuts them), `split` are cut by it.
    `cheap_whole` and `cheap_split` are the part of each that selective recomputation makes again from the others:
    outputs of norms, activations and products, never of a matrix multiplication (arXiv 2205.05198, sec. 5).
    `normed` come out of norms inside the part; a norm computed by several kernels keeps them once more.
    """

    whole: float
    split: float
    cheap_whole: float = 0.0
    cheap_split: float = 0.0
    normed: float = 0.0

    def __add__(self, other: Saved) -> Saved:
        return Saved(
            whole=self.whole + other.whole,
            split=self.split + other.split,
            cheap_whole=self.cheap_whole + other.cheap_whole,
            cheap_split=self.cheap_split + other.cheap_split,
            normed=self.normed + other.normed,
        )


@dataclass(frozen=True, kw_only=True)
class Layer(Part, ABC):
    """Base of what stands in a block: it declares its matrices and its other parameters, and the costs follow."""

    @abstractmethod
    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        """Every matrix that tokens are multiplied by, in a model of width `d_model`."""

    def vectors(self, d_model: int) -> int:
        """Parameters outside the matrices: gains, biases, convolutions, decays."""
        return 0

    @abstractmethod
    def saved(self, d_model: int) -> Saved:
        """What a token leaves behind for the backward pass, this part's normalised input included."""

    def params(self, d_model: int) -> int:
        """All parameters."""
        return sum(matrix.params for matrix in self.matrices(d_model)) + self.vectors(d_model)

    def matmul_params(self, d_model: int) -> int:
        """Parameters a token is multiplied by."""
        return sum(matrix.params_used for matrix in self.matrices(d_model))

    def params_active(self, d_model: int) -> int:
        """Parameters that take part in one token: all but the experts it does not meet."""
        return self.matmul_params(d_model) + self.vectors(d_model)


@dataclass(frozen=True, kw_only=True)
class Mixer(Layer):
    """Base of what carries information between tokens: attention, state-space models, linear attention."""

    @abstractmethod
    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        """Forward FLOP/token beyond the matrices, averaged over a sequence of `seq_len` tokens.

        Every token is charged for the whole context, as in M (arXiv 2401.02954); `causal` charges it for the
        tokens before it and itself alone.
        """

    def decode_flops(self, position: float) -> float:
        """Forward FLOP beyond the matrices of one new token when `position` tokens stand in the cache, itself too."""
        return self.mixing_flops(position)

    @abstractmethod
    def cache_values(self, seq_len: float) -> float:
        """Values kept for one sequence of `seq_len` tokens while it is being generated."""

    def wide_values(self, seq_len: float) -> float:
        """Those of `cache_values` that are kept in fp32 at least, whatever the precision: states that add up."""
        return 0.0

    @property
    def cache_pieces(self) -> int:
        """Into how many parts tensor parallelism can cut the cache: beyond them devices hold copies."""
        return 1

    @property
    def turned(self) -> int | None:
        """Channels of each query and key that a rotary position is given; None where it is given none."""
        return None

    @property
    def scored(self) -> int | None:
        """Heads whose scores a position may add a bias to; None where there are none."""
        return None

    def flops_per_token(self, d_model: int, seq_len: int) -> int:
        """Training FLOP/token (three passes), the whole context included (arXiv 2401.02954, eq. 2)."""
        return 6 * self.matmul_params(d_model) + round(3 * self.mixing_flops(seq_len))

    @property
    def paged(self) -> tuple[Paged, ...]:
        """What every token adds to the cache, by kind: what a cache may round. The rest of it are states."""
        return ()

    def paged_tokens(self, seq_len: float) -> float:
        """Of how many tokens that is kept."""
        return seq_len

    def cache_bytes(self, seq_len: float, value_bytes: float = 2, cache: Cached | None = None) -> float:
        """Bytes kept for one sequence of `seq_len` tokens by a model whose values take `value_bytes`.

        With `cache`, what tokens add is rounded as the engine does it.
        """
        wide, values = self.wide_values(seq_len), self.cache_values(seq_len)
        rounded = 0.0
        if cache is not None:
            kept = self.paged_tokens(seq_len)
            values -= kept * sum(kind.heads * kind.width for kind in self.paged)
            rounded = sum(kind.bytes(seq_len, getattr(self, "window", None), cache) for kind in self.paged)
        return (values - wide) * value_bytes + wide * max(WIDE_BYTES, value_bytes) + rounded


@dataclass(frozen=True, kw_only=True)
class FFN(Layer):
    """Base of what works on every token alone."""

    def flops_per_token(self, d_model: int) -> int:
        """Training FLOP/token: two for a multiply-add, three passes (forward, and two backward)."""
        return 6 * self.matmul_params(d_model)
