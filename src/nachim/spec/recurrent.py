"""Recurrent mixers beside state-space models: the gated delta rule, and Griffin's gated unit."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.cost import Matrix, Mixer, Saved


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(Mixer):
    """A head's state, `d_key` x `d_value`, decays and is then corrected towards each value (arXiv 2412.06464, eq. 10).

    Queries and keys come from `n_key_heads` heads, each of which serves as many of the `n_heads` heads of values and
    states as there are to one; a short convolution of `d_conv` tokens stands before all three. Positions are left
    alone. Training works on chunks of `chunk` tokens (arXiv 2406.06484, sec. 3), decoding is the recurrence.
    """

    n_heads: int
    n_key_heads: int
    d_key: int
    d_value: int
    d_conv: int = 4
    chunk: int = 64

    def check(self) -> None:
        self.require_positive("n_heads", "n_key_heads", "d_key", "d_value", "d_conv", "chunk")
        if self.n_heads % self.n_key_heads:
            self.refuse("n_key_heads", f"is {self.n_key_heads}; it must divide n_heads={self.n_heads}")

    @property
    def keys(self) -> int:
        """Channels of all keys."""
        return self.n_key_heads * self.d_key

    @property
    def values(self) -> int:
        """Channels of all values."""
        return self.n_heads * self.d_value

    @property
    def channels(self) -> int:
        """Channels that the convolution works on: queries, keys and values."""
        return 2 * self.keys + self.values

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        return (
            Matrix(d_model, 2 * self.keys, split="columns", pieces=self.n_key_heads),
            Matrix(d_model, 2 * self.values + 2 * self.n_heads, split="columns", pieces=self.n_heads),
            Matrix(self.values, d_model, split="rows", pieces=self.n_heads),
        )

    def vectors(self, d_model: int) -> int:
        return self.channels * self.d_conv + 2 * self.n_heads + self.d_value

    def saved(self, d_model: int) -> Saved:
        """As torch's autograd keeps them: the squares of chunks, what each head reads and writes, and its states."""
        squares, keys = self.n_heads * self.chunk, self.n_heads * self.d_key
        remade = 3 * self.channels + 4 * squares + 5 * self.values + 2 * keys + 2 * self.keys + 9 * self.n_heads
        met = 2 * self.n_key_heads * self.chunk + 2 * keys
        states = keys * self.d_value / self.chunk
        split = self.channels + remade + met + 5 * self.values + states
        return Saved(whole=2 * d_model, cheap_whole=d_model, split=split, cheap_split=remade)

    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        """The chunked form: scores of keys and of queries with keys, what they mix, and the triangular system.

        A system of `chunk` equations is solved for each value and key channel, at half of a product's FLOP.
        """
        chunk = min(self.chunk, seq_len)
        seen = (chunk + 1) / 2 if causal else chunk
        solved = chunk * (self.d_key + self.d_value)
        inside = 4 * seen * self.keys + self.n_heads * (solved + 2 * seen * self.d_value)
        return inside + self.decode_flops(seq_len)

    def decode_flops(self, position: float) -> float:
        """The recurrence: convolution, then each state value met by the key, written, read; decay is not counted."""
        return 2 * self.d_conv * self.channels + 6 * self.n_heads * self.d_key * self.d_value

    def cache_values(self, seq_len: float) -> float:
        return self.wide_values(seq_len) + (self.d_conv - 1) * self.channels

    def wide_values(self, seq_len: float) -> float:
        return self.n_heads * self.d_key * self.d_value

    @property
    def cache_pieces(self) -> int:
        return self.n_key_heads


@dataclass(frozen=True, kw_only=True)
class RGLRU(Mixer):
    """Griffin's recurrent block (arXiv 2402.19427, sec. 2.4): a real-gated linear recurrent unit after a convolution.

    Each of `d_rnn` channels keeps one value; its decay and its input have gates, computed from the channels of its own
    one of `n_blocks` blocks. A GELU of another projection multiplies what comes out. Two of these to one attention with
    a window make Griffin. Every projection has a bias, as in RecurrentGemma.
    """

    d_rnn: int
    n_blocks: int
    d_conv: int = 4

    def check(self) -> None:
        self.require_positive("d_rnn", "n_blocks", "d_conv")
        if self.d_rnn % self.n_blocks:
            self.refuse("n_blocks", f"is {self.n_blocks}; it must divide d_rnn={self.d_rnn}")

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        width, blocks = self.d_rnn // self.n_blocks, {"pieces": self.n_blocks}
        gates = 2 * self.n_blocks
        return (
            Matrix(d_model, 2 * self.d_rnn, split="columns", **blocks),
            Matrix(width, width, count=gates, used=gates, split="columns", **blocks),
            Matrix(self.d_rnn, d_model, split="rows", **blocks),
        )

    def vectors(self, d_model: int) -> int:
        """Biases of input, gates and output, the convolution with its own, and one decay a channel."""
        return (2 + 2 + self.d_conv + 1 + 1) * self.d_rnn + d_model

    def saved(self, d_model: int) -> Saved:
        """As torch's autograd keeps them: all but the input's projections and the gates follow by elementwise work."""
        return Saved(whole=2 * d_model, cheap_whole=d_model, split=16 * self.d_rnn, cheap_split=12 * self.d_rnn)

    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        """Convolution, then one multiply-add of every state value, in scan and in recurrence."""
        return 2 * (self.d_conv + 1) * self.d_rnn

    def cache_values(self, seq_len: float) -> float:
        return self.d_rnn * self.d_conv

    def wide_values(self, seq_len: float) -> float:
        return self.d_rnn

    @property
    def cache_pieces(self) -> int:
        return self.n_blocks
