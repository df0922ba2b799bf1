"""The decoder as a value, and what it costs."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nachim.spec.attention import Attention
from nachim.spec.cached import Cached
from nachim.spec.cost import FFN, Layer, Mixer
from nachim.spec.ffn import SwiGLU
from nachim.spec.mtp import MTP
from nachim.spec.norm import Norm, RMSNorm
from nachim.spec.parametrisation import Parametrisation, Standard
from nachim.spec.part import Part, later
from nachim.spec.pattern import MixtureOfDepths, Pattern
from nachim.spec.position import Position, RoPE
from nachim.spec.residual import PreNorm, Residual


@dataclass(frozen=True)
class Block:
    """One kind of layer: what mixes tokens, what works on each alone (or nothing), how the mixer knows their order, and
    the share of tokens it sees."""

    mixer: Mixer
    ffn: FFN | None
    position: Position = RoPE()
    share: float = 1.0

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its parts."""
        return (self.mixer,) if self.ffn is None else (self.mixer, self.ffn)

    def cache_bytes(self, seq_len: float, value_bytes: float = 2, cache: Cached | None = None) -> float:
        """Bytes kept for one sequence; what only some tokens go through is not rounded."""
        return self.mixer.cache_bytes(self.share * seq_len, value_bytes, cache if self.share == 1 else None)


@dataclass(frozen=True, kw_only=True)
class Decoder(Part):
    """A decoder: embedding, `n_layers` blocks of a mixer and a feed-forward, norm, head.

    A `Pattern` gives layers different parts; without `ffn` a block is its mixer alone, as in Mamba. `residual` says how
    sublayers meet the stream. Embedded tokens are multiplied by `embedding_scale` (Gemma) and, with `embedding_norm`,
    normalised (BLOOM). Logits are multiplied by `logit_scale` (Command R); `logit_cap` then bounds them,
    cap * tanh(logits / cap) (Gemma-2). `parametrisation` says how initial weights, factors of the forward pass and the
    optimizer's values for each weight follow the shape; it costs nothing. `mtp` trains it to predict further tokens
    too. Counts follow the house's vocabulary: `flops_per_token` (M) leaves the head out, `head_flops_per_token` is the
    head. What `mtp` adds is in the parameters and in both, and not in what reading and writing text costs.
    """

    RETIRED: ClassVar[Mapping[str, object]] = {"sandwich": False}

    vocab_size: int
    d_model: int
    n_layers: int
    attention: Mixer | Pattern
    ffn: FFN | Pattern | None
    norm: Norm = RMSNorm()
    position: Position | Pattern = RoPE()
    tied: bool = False
    residual: Residual = later(PreNorm())
    embedding_scale: float = later(1.0)
    embedding_norm: bool = later(False)
    logit_scale: float = later(1.0)
    logit_cap: float | None = later(None)
    depth: MixtureOfDepths | None = None
    parametrisation: Parametrisation = later(Standard())
    mtp: MTP | None = later(None)

    def check(self) -> None:
        self.require_positive("vocab_size", "d_model", "n_layers", "embedding_scale", "logit_scale")
        if self.logit_cap is not None:
            self.require_positive("logit_cap")
        if isinstance(self.position, Pattern) and any(block.position.added for block in self.kinds):
            self.refuse("position", "is a pattern with a part that is added to the embedding, which serves all layers")
        for block in self.kinds:
            why = block.position.misfit(block.mixer.scored, block.mixer.turned)
            if why:
                self.refuse("attention", why)

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every layer, first to last. Raises UserError when a pattern does not fill them, or has a wrong part."""
        parts = self._over("attention", Mixer), self._over("ffn", FFN), self._over("position", Position)
        shares = [1.0 if self.depth is None else self.depth.share(layer) for layer in range(self.n_layers)]
        layers = tuple(zip(*parts, shares, strict=True))
        made = {(*map(id, layer[:-1]), layer[-1]): Block(*layer) for layer in layers}
        return tuple(made[(*map(id, layer[:-1]), layer[-1])] for layer in layers)

    def _over(self, field: str, kind: type[Part]) -> tuple[Any, ...]:
        value = getattr(self, field)
        if not isinstance(value, Pattern):
            return (value,) * self.n_layers
        parts = value.over(self.n_layers)
        for part in parts:
            if not isinstance(part, kind):
                self.refuse(field, f"has a pattern with {part!r}, which is not {kind.__name__}")
        return parts

    @functools.cached_property
    def kinds(self) -> dict[Block, int]:
        """How many layers there are of each kind."""
        times = Counter(map(id, self.blocks))  # few objects stand for many layers, and comparing parts is slow
        found: Counter[Block] = Counter()
        for block in {id(block): block for block in self.blocks}.values():
            found[block] += times[id(block)]
        return dict(found)

    @property
    def trained_blocks(self) -> tuple[Block, ...]:
        """Every layer that a training step goes through: those of multi-token prediction last."""
        further = 0 if self.mtp is None else self.mtp.depth
        return self.blocks + further * self.blocks[-1:]

    @functools.cached_property
    def trained_kinds(self) -> dict[Block, int]:
        """How many layers of each kind a training step goes through: with those of multi-token prediction."""
        found = Counter(self.kinds)
        if self.mtp is not None:
            found[self.blocks[-1]] += self.mtp.depth
        return dict(found)

    @property
    def passes(self) -> int:
        """How often embedding and head work on a token in training: once, and for every further token predicted."""
        return 1 if self.mtp is None else 1 + self.mtp.depth

    def norm_params(self, block: Block) -> int:
        """Parameters of the norms of one layer, and of what tells it positions."""
        return block.position.layer_params() + self.residual.norms(len(block.layers)) * self.norm.params(self.d_model)

    @property
    def last_norm_params(self) -> int:
        """Parameters of the norm before the head."""
        return self.residual.last * self.norm.params(self.d_model)

    @property
    def table_params(self) -> int:
        """Parameters that stand beside the embedding: tables of positions, and the norm of embedded tokens."""
        tables = sum(position.params(self.d_model) for position in {block.position for block in self.kinds})
        return tables + self.embedding_norm * self.norm.params(self.d_model)

    def _body(self, per_layer: str) -> int:
        """Sum of a count over the layers, their norms, the routers of a mixture of depths and the last norm."""
        total = self.last_norm_params
        if self.mtp is not None:
            last = self.residual.last
            total += self.mtp.joining(self.d_model) + self.mtp.norm_params(self.norm, self.d_model, last)
        for block, times in self.trained_kinds.items():
            layers = sum(getattr(layer, per_layer)(self.d_model) for layer in block.layers)
            router = self.d_model if block.share < 1 else 0
            total += times * (layers + self.norm_params(block) + router)
        return total

    @property
    def params_non_embedding(self) -> int:
        """Parameters of the blocks (of multi-token prediction too) and the last norm: neither embedding nor head."""
        return self._body("params")

    @property
    def params_embedding(self) -> int:
        """Parameters of the embedding, what stands beside it (`table_params`) and an untied head."""
        tables = 1 if self.tied else 2
        return tables * self.vocab_size * self.d_model + self.table_params

    @property
    def params_total(self) -> int:
        """Every parameter; a tied head is counted once."""
        return self.params_non_embedding + self.params_embedding

    @property
    def params_active(self) -> int:
        """Parameters that take part in one token: without the experts that it does not meet."""
        return self._body("params_active") + self.params_embedding

    @property
    def matmul_params(self) -> float:
        """Parameters of the blocks that a token is multiplied by, on average: two FLOP each in a forward pass."""
        return self._multiplied(self.kinds)

    def _multiplied(self, kinds: Mapping[Block, int]) -> float:
        total = 0.0
        for block, times in kinds.items():
            router = self.d_model if block.share < 1 else 0
            used = sum(layer.matmul_params(self.d_model) for layer in block.layers)
            total += times * (block.share * used + router)
        return total

    def mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        """Forward FLOP/token of all mixers beyond their matrices (see `Mixer.mixing_flops`)."""
        return self._mixed(self.kinds, seq_len, causal)

    def _mixed(self, kinds: Mapping[Block, int], seq_len: float, causal: bool) -> float:
        return sum(
            times * block.share * block.mixer.mixing_flops(max(1.0, block.share * seq_len), causal)
            for block, times in kinds.items()
        )

    @property
    def trained_matmul_params(self) -> float:
        """`matmul_params` of a training step: with those of multi-token prediction."""
        return self._multiplied(self.trained_kinds) + (0 if self.mtp is None else self.mtp.joining(self.d_model))

    def trained_mixing_flops(self, seq_len: float, causal: bool = False) -> float:
        """`mixing_flops` of a training step: with those of multi-token prediction."""
        return self._mixed(self.trained_kinds, seq_len, causal)

    def flops_per_token(self, seq_len: int, causal: bool = False) -> int:
        """M: non-embedding training FLOP/token; 72 L d^2 + 12 L d s for the plain block (arXiv 2401.02954, eq. 2).

        `causal` charges attention for the tokens before a token, and itself, alone.
        """
        return round(6 * self.trained_matmul_params + 3 * self.trained_mixing_flops(seq_len, causal))

    def prefill_flops(self, seq_len: int) -> float:
        """Forward FLOP/token of reading a prompt of `seq_len` tokens; the head reads its last token only."""
        return 2 * self.matmul_params + self.mixing_flops(seq_len, causal=True)

    def decode_flops(self, position: float) -> float:
        """Forward FLOP of writing one token with `position` tokens before and at it, head included."""
        mixing = sum(
            times * block.share * block.mixer.decode_flops(max(1.0, block.share * position))
            for block, times in self.kinds.items()
        )
        return 2 * self.matmul_params + mixing + self.logit_flops

    @property
    def logit_flops(self) -> int:
        """Forward FLOP of one token's logits."""
        return 2 * self.d_model * self.vocab_size

    @property
    def head_flops_per_token(self) -> int:
        """Training FLOP/token of the output head alone."""
        return 3 * self.logit_flops * self.passes

    def cache_bytes(self, seq_len: int, value_bytes: float = 2, cache: Cached | None = None) -> int:
        """Bytes kept for one sequence of `seq_len` tokens, over all layers: keys and values, latents, states.

        Values take `value_bytes`, but for the states that stay in fp32 at least, and for what `cache` rounds.
        """
        return round(sum(times * block.cache_bytes(seq_len, value_bytes, cache) for block, times in self.kinds.items()))

    @property
    def cached_context(self) -> int | None:
        """Tokens up to which keys in a cache are those of the whole sequence; None where there is no end.

        Beyond them rotary frequencies follow the length, and cached keys stay as they were turned.
        """
        turning = [block.position for block in self.kinds if block.mixer.turned is not None]
        scalings = [position.scaling for position in turning if isinstance(position, RoPE)]
        return min((one.until for one in scalings if one is not None and one.until is not None), default=None)


def plain(*, d_model: int, n_layers: int, d_head: int, vocab_size: int) -> Decoder:
    """The plain block of the scaling literature: multi-head attention and a SwiGLU of width about 8/3 d_model.

    `d_ff` is 8/3 d_model rounded to a multiple of 8. Raises UserError when `d_head` does not divide `d_model`.
    """
    n_heads, left = divmod(d_model, d_head)
    attention = Attention(n_heads=max(1, n_heads), n_kv_heads=max(1, n_heads), d_head=d_head)
    if left or not n_heads:
        attention.refuse("d_head", f"is {d_head}; it must divide d_model={d_model}")
    ffn = SwiGLU(d_ff=round(d_model / 3) * 8)
    return Decoder(vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, attention=attention, ffn=ffn)
