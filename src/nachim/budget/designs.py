"""A set of real decoders around a law's optimum: each spends the compute, and none costs more loss than it may.

A law says where the optimum lies, to a factor; the loss around it is flat. Within half a percent of loss M can move by
a factor of 1.8 either way at 1e21 FLOP: smaller members serve cheaper, larger ones need fewer tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nachim.budget.shape import shape as family_shape
from nachim.law.published import BATCH_OPT, LOSS_LAW, LR_OPT, KnownLaw, scale_of
from nachim.law.repeat import effective_tokens
from nachim.spec import MTP, Attention, Decoder, SwiGLU, UserError

EPSILON = 0.005
"""Share of the least loss that a design may cost: about what the published laws differ by at one budget."""
RANK = 0.001
"""Losses that differ by less are equal when designs are ranked; then the faster one is first."""
FEWEST_STEPS = 500
"""Steps below which a run is mostly warm-up: the ladder's rule for its own runs."""
SMALL = 1e17
"""FLOP below which a budget is the ladder's: its shapes, vocabulary and length. Published shapes begin above it."""
SETTINGS = ((SMALL, 512, 128), (1e20, 32_768, 2048), (math.inf, 131_072, 4096))
"""(up to compute, vocabulary, length): the ladder's; GPT-2's and Llama 2's class; Llama 3's and DeepSeek's."""
SLENDER, STOUT, USUAL = 32, 136, 96
"""d_model / n_layers of published decoders: Qwen2.5-0.5B 37, DeepSeek 67B 86, Llama-3-8B 128, DeepSeek 7B 136."""
WIDTHS = (*range(256, 1024, 128), *range(1024, 3072, 512), *range(3072, 32_769, 1024))
"""Widths whose heads are a multiple of eight from 1,024 on: eight devices can share them and their keys, and no width
serves at half the cache of its neighbours because eight does not divide its heads."""
SMALL_WIDTHS = (*range(32, 64, 8), *range(64, 513, 16), *range(576, 1025, 64))
REACH = 3.0
"""How far from the optimum's M, as a factor, shapes are looked at."""
BAND = 2**0.25
"""Members stand at least this ratio of M apart, but for those nearest to the optimum, which differ in aspect."""


@dataclass(frozen=True)
class Asked:
    """What the designs are for: compute in FLOP, length, vocabulary, the law, and unique tokens if they are limited.

    Batches are whole multiples of `devices` sequences where that changes them little. `ladder` says whether it is a
    budget of the ladder's size; None: by compute. `mtp` are modules for further tokens: they take their share of the
    compute, and losses are those of the decoder without them.
    """

    flops: float
    seq_len: int
    vocab_size: int
    law: KnownLaw
    unique_tokens: float | None = None
    devices: int = 1
    ladder: bool | None = None
    mtp: MTP | None = None

    @property
    def small(self) -> bool:
        """Whether it is a budget of the ladder's size."""
        return self.flops < SMALL if self.ladder is None else self.ladder

    @property
    def loss_law(self) -> KnownLaw:
        """The law that gives losses: its own where it has a surface."""
        return self.law if self.law.surface else LOSS_LAW

    def worth(self, tokens: float) -> float:
        """Fresh tokens that `tokens` are worth: fewer where the unique ones repeat."""
        return effective_tokens(tokens, self.unique_tokens) if self.unique_tokens else tokens


@dataclass(frozen=True)
class Design:
    """A decoder with the tokens that spend the budget, the loss that a law promises at the scale `x`, its batch and its
    learning rate."""

    model: Decoder
    seq_len: int
    tokens: float
    x: float
    loss: float
    batch_tokens: int
    lr: float

    @property
    def flops_per_token(self) -> int:
        """M."""
        return self.model.flops_per_token(self.seq_len)

    @property
    def steps(self) -> int:
        """Optimizer steps, at least one."""
        return max(1, round(self.tokens / self.batch_tokens))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        model, attention = self.model, self.model.blocks[0].mixer
        assert isinstance(attention, Attention)  # every design is a plain decoder
        return {
            "n_layers": model.n_layers,
            "d_model": model.d_model,
            "n_heads": attention.n_heads,
            "n_kv_heads": attention.n_kv_heads,
            "d_head": attention.d_head,
            "d_ff": getattr(model.ffn, "d_ff", None),
            "vocab_size": model.vocab_size,
            "tied": model.tied,
            "further_tokens": model.passes - 1,
            "params_total": model.params_total,
            "params_non_embedding": model.params_non_embedding,
            "flops_per_token": self.flops_per_token,
            "x": self.x,
            "tokens": self.steps * self.batch_tokens,
            "loss": self.loss,
            "batch_tokens": self.batch_tokens,
            "lr": self.lr,
            "steps": self.steps,
            "kv_bytes_per_token": model.cache_bytes(1),
        }


def settings(flops: float) -> tuple[int, int]:
    """Vocabulary and sequence length by default at compute `flops`: see `SETTINGS`."""
    return next((vocab_size, seq_len) for limit, vocab_size, seq_len in SETTINGS if flops < limit)


def decoder(d_model: int, n_layers: int, vocab_size: int, n_heads: int = 0, n_kv_heads: int = 0) -> Decoder:
    """The plain published block: RoPE, RMSNorm, grouped keys, SwiGLU.

    Heads are 64 wide below a width of 3,072, else 128 (Llama 3.2 and Llama 3). From 1,024 on they share 8 heads of keys
    and values, or as many as divide theirs. The SwiGLU is 8/3 d_model wide, from 4,096 on 7/2 as in Llama 3 and
    Mistral, rounded up to a multiple of 64, 128 or 256. Tables are tied where two would hold more than half as many
    parameters as the blocks do. Raises UserError when heads do not divide.
    """
    n_heads = n_heads or max(1, d_model // (64 if d_model < 3072 else 128))
    n_kv_heads = n_kv_heads or (n_heads if d_model < 1024 else math.gcd(n_heads, 8))
    attention = Attention(n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=max(1, d_model // n_heads))
    if d_model % n_heads:
        attention.refuse("n_heads", f"is {n_heads}; it must divide d_model={d_model}")
    step = 64 if d_model < 1024 else 128 if d_model < 2048 else 256
    wanted = d_model * (7 / 2 if d_model >= 4096 else 8 / 3)
    ffn = SwiGLU(d_ff=math.ceil(wanted / step) * step)
    model = Decoder(vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, attention=attention, ffn=ffn)
    return _tied(model)


def given_decoder(text: str, vocab_size: int) -> Decoder:
    """The decoder that `LAYERSxWIDTH[xHEADS[xKV_HEADS]]` names, such as 30x4096x32.

    Raises UserError for any other text.
    """
    parts = text.lower().split("x")
    if not 2 <= len(parts) <= 4 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--shape {text}: give LAYERSxWIDTH[xHEADS[xKV_HEADS]], such as 30x4096x32x8")
    n_layers, d_model, *heads = (int(part) for part in parts)
    return decoder(d_model, n_layers, vocab_size, *heads)


@functools.lru_cache(maxsize=16)
def designs(asked: Asked, keep: int = 8, most: float = math.inf) -> tuple[Design, ...]:
    """At most `keep` designs within `EPSILON` of the least loss, by loss; none with more than `most` FLOP/token.

    Where the law has no surface, its optimum is the middle and `LOSS_LAW` says how flat the loss is around it. Where
    tokens repeat, the shape of least loss is, for a law's optimum takes all of them for fresh.
    Raises UserError, naming the smallest budget that works, when the compute is too little for any decoder.
    """
    _refuse_too_small(asked)
    wanted = min(most, max(_middle(asked), smallest_cost(asked)))
    found = list(_candidates(asked, wanted / REACH, min(most, wanted * REACH)))
    if not found:
        widest, deepest = WIDTHS[-1], WIDTHS[-1] // SLENDER
        raise UserError(
            f"no decoder has M near {wanted:.3g} FLOP/token at length {asked.seq_len} and vocabulary "
            f"{asked.vocab_size}; the largest that is looked at is {deepest} layers x {widest}: give another budget"
        )
    least = min(one.loss for one in found)
    within = [one for one in found if one.loss <= (1 + EPSILON) * least]
    chosen = (design_of(asked, one.model()) for one in _apart(within, wanted, keep))
    return tuple(sorted(chosen, key=lambda one: one.loss))


def smallest_cost(asked: Asked) -> int:
    """M of the smallest decoder there is, FLOP/token."""
    return _smallest(asked)[0]


def _middle(asked: Asked) -> float:
    """The optimum's M: the law's, or that of least loss where so many tokens would repeat, or further tokens
    are predicted."""
    optimum = asked.law.optimum(asked.flops)
    cost = asked.flops / optimum.tokens
    if asked.mtp is None and asked.worth(optimum.tokens) == optimum.tokens:
        return cost
    least = min(_candidates(asked, cost / REACH, math.inf), key=lambda one: one.loss, default=None)
    return cost if least is None else least.flops_per_token


def shapes_between(asked: Asked, low: float, high: float) -> list[Decoder]:
    """One decoder a band of M from `low` to `high` FLOP/token, smallest first, whatever its loss."""
    bands: dict[int, _Candidate] = {}
    for one in sorted(_candidates(asked, low, high), key=_Candidate.odd):
        bands.setdefault(round(math.log(one.flops_per_token / low, BAND)), one)
    return [bands[number].model() for number in sorted(bands)]


def design_of(asked: Asked, model: Decoder) -> Design:
    """`model` with the tokens that spend the budget. Its loss counts repeated tokens at what they are worth."""
    tokens = asked.flops / model.flops_per_token(asked.seq_len)
    x = scale_of(model, asked.loss_law.scale, asked.seq_len)
    lr = float(f"{LR_OPT(asked.flops):.4g}")
    return Design(model, asked.seq_len, tokens, x, loss_at(asked, x, tokens), batch_tokens(asked), lr)


def loss_at(asked: Asked, x: float, tokens: float) -> float:
    """The loss law's loss at scale `x`, repeated tokens counted at what they are worth."""
    surface = asked.loss_law.surface
    assert surface is not None  # the loss law has one
    return surface.loss(x, asked.worth(tokens))


def batch_tokens(asked: Asked) -> int:
    """DeepSeek's batch in whole sequences with three leading bits, so that powers of two of devices share it evenly.

    Or the nearest multiple of the devices, where they are few enough for that to change it by an eighth at most.
    """
    sequences = max(1.0, BATCH_OPT(asked.flops) / asked.seq_len)
    step = 2 ** max(0, math.floor(math.log2(sequences)) - 3)
    if asked.devices > 1 and sequences >= 4 * asked.devices:
        step = math.lcm(step, asked.devices) if math.lcm(step, asked.devices) <= sequences / 4 else asked.devices
    return asked.seq_len * max(1, round(sequences / step)) * step


@dataclass(frozen=True)
class _Candidate:
    """A shape before it is built: `one` layer of it, and how many; `mtp` beside them."""

    one: Decoder
    n_layers: int
    flops_per_token: int
    loss: float
    untied: bool
    mtp: MTP | None

    def odd(self) -> float:
        return abs(math.log(self.one.d_model / self.n_layers / USUAL))

    def model(self) -> Decoder:
        model = dataclasses.replace(self.one, n_layers=self.n_layers, tied=False)
        return dataclasses.replace(model if self.untied else _tied(model), mtp=self.mtp)


def _candidates(asked: Asked, low: float, high: float) -> Iterator[_Candidate]:
    """Every shape of the grid with M from `low` to `high` and a usual aspect that can take enough steps."""
    costliest = asked.flops / (FEWEST_STEPS * batch_tokens(asked))
    for width in SMALL_WIDTHS if asked.small else WIDTHS:
        one, usual = _one_layer(width, asked.vocab_size, asked.small)
        per_layer = one.flops_per_token(asked.seq_len)
        further = 0
        if asked.mtp is not None:
            further = dataclasses.replace(one, mtp=asked.mtp).flops_per_token(asked.seq_len) - per_layer
        fewest = math.ceil((low - further) / per_layer)
        most = math.floor((min(high, costliest) - further) / per_layer)
        if usual:  # the ladder's family has a depth for each width: stay near it
            fewest, most = max(fewest, 2, math.ceil(usual / 1.5)), min(most, math.floor(1.5 * usual))
            step = 1
        else:
            fewest, most = max(fewest, 2, math.ceil(width / STOUT)), min(most, width // SLENDER)
            step = 2 if width < 4096 else 4
        for n_layers in range(math.ceil(fewest / step) * step, most + 1, step):
            flops_per_token = n_layers * per_layer + further
            x = _scale(one, n_layers, per_layer, asked)
            loss = loss_at(asked, x, asked.flops / flops_per_token)
            yield _Candidate(one, n_layers, flops_per_token, loss, asked.small, asked.mtp)


def _scale(one: Decoder, n_layers: int, per_layer: int, asked: Asked) -> float:
    """`scale_of` the model of `n_layers` layers like the `one`, of M `per_layer`: counts of layers add up."""
    if asked.loss_law.scale == "flops_per_token":
        return n_layers * per_layer
    last_norm = one.norm.params(one.d_model)
    body = n_layers * (one.params_non_embedding - last_norm) + last_norm
    if asked.loss_law.scale == "params_non_embedding":
        return body
    tables = 1 if not asked.small and _ties(one, body) else 2
    return body + tables * one.vocab_size * one.d_model


@functools.cache
def _one_layer(width: int, vocab_size: int, small: bool) -> tuple[Decoder, int]:
    """A decoder of one layer, and the depth that the ladder's family has at that width (0 outside it)."""
    if not small:
        return decoder(width, 1, vocab_size), 0
    member = family_shape(width, vocab_size)
    return dataclasses.replace(member, n_layers=1), member.n_layers


def _ties(model: Decoder, body: int) -> bool:
    """Whether two tables of `model` would hold more than half as many parameters as its `body`."""
    return 4 * model.vocab_size * model.d_model > body


def _tied(model: Decoder) -> Decoder:
    return dataclasses.replace(model, tied=_ties(model, model.params_non_embedding))


def _apart(found: list[_Candidate], wanted: float, keep: int) -> list[_Candidate]:
    """A set that shows the choice: three aspects nearest the optimum, then one member a band of M, near ones first.

    In a band the member is taken whose aspect is nearest the usual one.
    """

    def aside(one: _Candidate) -> float:
        return abs(math.log(one.flops_per_token / wanted))

    bands: dict[int, list[_Candidate]] = {}
    for one in found:
        bands.setdefault(round(math.log(one.flops_per_token / wanted, BAND)), []).append(one)
    chosen: list[_Candidate] = []
    for band in sorted(bands, key=lambda number: min(aside(one) for one in bands[number])):
        members = sorted(bands[band], key=_Candidate.odd)
        widths = dict.fromkeys(one.one.d_model for one in members)
        take = 3 if not chosen else 1
        chosen += [min((m for m in members if m.one.d_model == width), key=aside) for width in list(widths)[:take]]
    return chosen[:keep]


def _smallest(asked: Asked) -> tuple[int, Decoder]:
    """The smallest decoder there is, with its M."""
    if asked.small:
        model = dataclasses.replace(family_shape(SMALL_WIDTHS[0], asked.vocab_size), n_layers=2)
    else:
        model = decoder(WIDTHS[0], 2, asked.vocab_size)
    model = dataclasses.replace(model, mtp=asked.mtp)
    return model.flops_per_token(asked.seq_len), model


def _refuse_too_small(asked: Asked) -> None:
    """Raise UserError when no decoder can take enough steps of a batch within the budget."""
    cost, model = _smallest(asked)
    least = FEWEST_STEPS * cost * asked.seq_len
    while True:  # a larger budget asks for a larger batch, which grows more slowly than the budget: it settles
        needs = FEWEST_STEPS * cost * batch_tokens(dataclasses.replace(asked, flops=least, devices=1))
        if needs <= least * (1 + 1e-9):
            break
        least = needs
    if asked.flops < least:
        raise UserError(
            f"{asked.flops:.3g} FLOP is too little: the smallest decoder ({model.n_layers} layers x {model.d_model}) "
            f"has M = {cost:,} FLOP/token at length {asked.seq_len}, and {FEWEST_STEPS} steps of a batch take "
            f"{least:.2g} FLOP; give at least that"
        )
