"""Mixers whose state does not grow with the context: state-space models and linear attention."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.cost import Matrix, Mixer, Saved
from nachim.spec.part import later


@dataclass(frozen=True, kw_only=True)
class Mamba(Mixer):
    """Selective state space (arXiv 2312.00752): each of `expand * d_model` channels keeps `d_state` values.

    `dt_rank` values give the step sizes; a convolution of `d_conv` tokens comes first. `inner_norm` normalises step
    sizes, inputs and outputs of the state, as Jamba does (arXiv 2403.19887), with `eps` in the root.
    """

    d_inner: int
    d_state: int = 16
    dt_rank: int
    d_conv: int = 4
    inner_norm: bool = False
    eps: float = later(1e-6)

    def check(self) -> None:
        self.require_positive("d_inner", "d_state", "dt_rank", "d_conv", "eps")

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        return (
            Matrix(d_model, 2 * self.d_inner, split="columns"),
            Matrix(self.d_inner, self.dt_rank + 2 * self.d_state, split="rows"),
            Matrix(self.dt_rank, self.d_inner, split="columns"),
            Matrix(self.d_inner, d_model, split="rows"),
        )

    def vectors(self, d_model: int) -> int:
        convolution = self.d_inner * (self.d_conv + 1)
        norms = (self.dt_rank + 2 * self.d_state) * self.inner_norm
        return convolution + self.d_inner * (self.d_state + 2) + norms

    def saved(self, d_model: int) -> Saved:
        """As torch's autograd keeps them; of the states that of every 16th token, the others are made again."""
        narrow, states = self.dt_rank + 2 * self.d_state, self.d_inner * self.d_state / 16
        normed = narrow * self.inner_norm
        return Saved(
            whole=2 * d_model + narrow + normed,
            cheap_whole=d_model + normed,
            split=10 * self.d_inner + states,
            cheap_split=7 * self.d_inner + states,
            normed=normed,
        )

    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        """Convolution, then decay, input and readout of every state value: 6 FLOP each, in scan and in recurrence."""
        return self.d_inner * (2 * self.d_conv + 6 * self.d_state)

    def cache_values(self, seq_len: float) -> float:
        """The state, and the tokens that the next one's convolution still meets."""
        return self.d_inner * (self.d_state + self.d_conv - 1)

    @property
    def cache_pieces(self) -> int:
        return self.d_inner


@dataclass(frozen=True, kw_only=True)
class Mamba2(Mixer):
    """State-space duality (arXiv 2405.21060): heads of `d_head` channels with one decay each.

    A channel keeps `d_state` values; their inputs and readouts are shared by the heads of one of `n_groups`. Training
    works on chunks of `chunk` tokens: attention inside a chunk, the state between chunks (sec. 6); decoding is the
    recurrence. The gated output is normalised in each group, with `eps` in the root.
    """

    n_heads: int
    d_head: int = 64
    d_state: int = 128
    n_groups: int = 1
    d_conv: int = 4
    chunk: int = 64
    eps: float = later(1e-5)

    def check(self) -> None:
        self.require_positive("n_heads", "d_head", "d_state", "n_groups", "d_conv", "chunk", "eps")
        if self.n_heads % self.n_groups:
            self.refuse("n_groups", f"is {self.n_groups}; it must divide n_heads={self.n_heads}")

    @property
    def d_inner(self) -> int:
        """Channels of all heads."""
        return self.n_heads * self.d_head

    @property
    def shared(self) -> int:
        """Values of state inputs and readouts a token has, over all groups."""
        return 2 * self.n_groups * self.d_state

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        return (
            Matrix(d_model, 2 * self.d_inner + self.n_heads, split="columns", pieces=self.n_heads),
            Matrix(d_model, self.shared, split="columns", pieces=self.n_groups),
            Matrix(self.d_inner, d_model, split="rows", pieces=self.n_heads),
        )

    def vectors(self, d_model: int) -> int:
        convolution = (self.d_inner + self.shared) * (self.d_conv + 1)
        return convolution + 3 * self.n_heads + self.d_inner

    def saved(self, d_model: int) -> Saved:
        """As torch's autograd keeps them: scores of chunks with and without decay, states between, what is read."""
        scores, states = self.n_heads * self.chunk, self.d_inner * self.d_state / self.chunk
        remade = 9 * self.d_inner + 4 * self.shared + 8 * self.n_heads + scores
        return Saved(
            whole=2 * d_model,
            cheap_whole=d_model,
            split=remade + 4 * self.d_inner + self.shared + self.n_heads + scores + 2 * states,
            cheap_split=remade,
            normed=self.d_inner,
        )

    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        """The chunked form: attention inside a chunk, then states written and read (arXiv 2405.21060, sec. 6.3)."""
        chunk = min(self.chunk, seq_len)
        seen = (chunk + 1) / 2 if causal else chunk
        inside = 2 * seen * (self.n_groups * self.d_state + self.d_inner)
        return inside + self.decode_flops(seq_len)

    def decode_flops(self, position: float) -> float:
        """The recurrence: convolution, then every state value written and read once; its decay is not counted.

        A decay is to a state what softmax is to attention: elementwise, and outside M.
        """
        return 2 * self.d_conv * (self.d_inner + self.shared) + 4 * self.d_state * self.d_inner

    def cache_values(self, seq_len: float) -> float:
        """The states, and the tokens that the next one's convolution still meets."""
        return self.d_inner * self.d_state + (self.d_conv - 1) * (self.d_inner + self.shared)

    @property
    def cache_pieces(self) -> int:
        return self.n_heads


@dataclass(frozen=True, kw_only=True)
class LinearAttention(Mixer):
    """Attention without softmax: a head keeps the sum of key-value products, `d_key` x `d_value` (arXiv 2006.16236).

    Heads forget at a fixed rate and turn queries and keys by position (RetNet, arXiv 2307.08621), or each of their
    channels forgets at a rate that the token sets through `decay_rank` values, and nothing turns (GLA, arXiv
    2312.06635). Each head is normalised; `gate` then multiplies it by a gate of its own projection. Training works on
    chunks of `chunk` tokens, equal ones where a sequence has no whole number of them; decoding is the recurrence.
    """

    n_heads: int
    d_key: int
    d_value: int
    gate: bool = True
    decay_rank: int | None = None
    chunk: int = 64

    def check(self) -> None:
        self.require_positive("n_heads", "d_key", "d_value", "chunk")
        if self.decay_rank is not None:
            self.require_positive("decay_rank")

    def matrices(self, d_model: int) -> tuple[Matrix, ...]:
        keys, values = self.n_heads * self.d_key, self.n_heads * self.d_value
        heads = {"split": "columns", "pieces": self.n_heads}
        rank = self.decay_rank
        decay = () if rank is None else (Matrix(d_model, rank), Matrix(rank, keys, **heads))
        return (
            Matrix(d_model, 2 * keys + (1 + self.gate) * values, **heads),
            *decay,
            Matrix(values, d_model, split="rows", pieces=self.n_heads),
        )

    def vectors(self, d_model: int) -> int:
        return self.d_value + (self.n_heads * self.d_key if self.decay_rank is not None else 0)

    def saved(self, d_model: int) -> Saved:
        """As torch's autograd keeps them: scores of chunks, states between, and in GLA keys for every 16 queries."""
        keys, values = self.n_heads * self.d_key, self.n_heads * self.d_value
        remade, states = 4 * keys + (3 + 2 * self.gate) * values, keys * self.d_value / self.chunk
        split = remade + self.gate * 2 * (keys + values) + values + self.n_heads * self.chunk + states
        if self.decay_rank is not None:
            decays = (6 + 3 * max(1, self.chunk / 16)) * keys
            remade, split = remade + decays, split + decays + keys + states
        whole = 2 * d_model + (self.decay_rank or 0)
        return Saved(whole=whole, cheap_whole=d_model, split=split, cheap_split=remade)

    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        """The chunked form: scores and mixing inside a chunk, then states written and read."""
        chunk = min(self.chunk, seq_len)
        seen = (chunk + 1) / 2 if causal else chunk
        return 2 * seen * self.n_heads * (self.d_key + self.d_value) + self.decode_flops(seq_len)

    def decode_flops(self, position: float) -> float:
        """The recurrence: every state value written and read once; its decay is not counted."""
        return 4 * self.n_heads * self.d_key * self.d_value

    def cache_values(self, seq_len: float) -> float:
        return self.n_heads * self.d_key * self.d_value

    def wide_values(self, seq_len: float) -> float:
        return self.cache_values(seq_len)

    @property
    def cache_pieces(self) -> int:
        return self.n_heads

    @property
    def turned(self) -> int | None:
        """Heads that forget by themselves read no positions."""
        return self.d_key if self.decay_rank is None else None
