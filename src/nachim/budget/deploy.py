"""What to train when it is to be served afterwards: size and tokens of least total cost at a wanted loss. Pure Python.

arXiv 2401.00448 charges 6·N FLOP a training token and 2·N a served one. Here a served token costs what its prefill and
decode cost on a device (`serve`), quantised weights pay in loss (`nachim.law.precision`), and only shapes that exist
are compared; the answer of FLOPs alone stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nachim.budget.serve import Demand, Serving, format_named, serve
from nachim.budget.speculate import Speculation
from nachim.law.precision import effective_share, rounding_penalty
from nachim.law.published import FLOPS_PER_UNIT, LOSS_LAW, KnownLaw, Surface, scale_of
from nachim.law.repeat import effective_tokens
from nachim.law.samples import accuracy_needed
from nachim.spec import Attention, Decoder, Device, Part, UserError

FEWEST, MOST = 1e6, 1e20
"""Training tokens between which a solution is sought."""
GOLDEN = (math.sqrt(5) - 1) / 2
BISECTIONS = 48
GRID = 24


@dataclass(frozen=True, kw_only=True)
class Training(Part):
    """What training is charged: `device` at its price, reaching the share `mfu` of its peak, on `seq_len` tokens.

    The peak is that of `precision`. The 0.4 is what Llama 3 was trained at (38 to 43 %: arXiv 2407.21783, table 4); a
    measured one is better. `unique_tokens` are there to train on; more than them repeat, and are worth less
    (arXiv 2305.16264).
    """

    device: Device
    seq_len: int
    mfu: float = 0.4
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    unique_tokens: float | None = None

    def check(self) -> None:
        self.require_positive("seq_len", "mfu", *(("unique_tokens",) if self.unique_tokens is not None else ()))
        if self.mfu > 1:
            self.refuse("mfu", f"is {self.mfu}; it is a share of the peak, at most 1")

    def dollars_per_token(self, model: Decoder) -> float:
        """Body and head, three passes."""
        if self.device.dollars_per_hour is None:
            raise UserError(f"nobody knows the price of {self.device.name}: give its dollars per hour to plan training")
        flops = model.flops_per_token(self.seq_len) + model.head_flops_per_token
        return flops / (self.device.peak(self.precision) * self.mfu) * self.device.dollars_per_hour / 3600


@dataclass(frozen=True, eq=False)
class Point:
    """A model trained on `tokens`, with the `loss` that is served and what training and serving it cost.

    `serving` is None, and the total without bound, where the demand cannot be met with it.
    """

    model: Decoder
    tokens: float
    loss: float
    train_dollars: float
    serving: Serving | None

    @property
    def serve_dollars(self) -> float:
        """Dollars of the whole horizon."""
        return self.serving.dollars if self.serving else math.inf

    @property
    def dollars(self) -> float:
        """Training and serving."""
        return self.train_dollars + self.serve_dollars

    def to_json(self, seq_len: int) -> dict[str, Any]:
        """Plain values; `seq_len` is the length that M counts."""
        model, attention = self.model, self.model.blocks[0].mixer
        heads = (attention.n_heads, attention.n_kv_heads) if isinstance(attention, Attention) else (None, None)
        return {
            "n_layers": model.n_layers,
            "d_model": model.d_model,
            "n_heads": heads[0],
            "n_kv_heads": heads[1],
            "params_total": model.params_total,
            "params_active": model.params_active,
            "flops_per_token": model.flops_per_token(seq_len),
            "tokens": self.tokens,
            "loss": self.loss,
            "train_dollars": self.train_dollars,
            "serve_dollars": self.serving and self.serving.dollars,
            "total_dollars": self.serving and self.dollars,
            "serving": self.serving and self.serving.to_json(),
        }


@dataclass(frozen=True)
class Deployment:
    """The answer. `curve` holds every shape that reaches `loss`, smallest first, trained as long as that takes.

    `chosen` is the cheapest of it with training and serving, `chinchilla` the cheapest with training alone, and
    `by_flops` the (x, tokens) of least 6·N·D + 2·N·served in FLOP (arXiv 2401.00448, sec. 2). `surface` has loss and
    total dollars of the curve's shapes over `token_grid`. `break_even_tokens` are the served tokens from which `chosen`
    is the cheaper of the two, and `answers` those that it gives a question for the total that `chinchilla` costs;
    None where there is no such number. `loss_law` names the law that gave the losses.
    """

    loss: float
    chosen: Point
    chinchilla: Point
    by_flops: tuple[float, float]
    break_even_tokens: float | None
    answers: float | None
    curve: tuple[Point, ...]
    token_grid: tuple[float, ...]
    surface: tuple[tuple[tuple[float, float], ...], ...]
    loss_law: str
    scale: str
    seq_len: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: `serving` of `nachim plan`."""
        return {
            "loss": self.loss,
            "loss_law": self.loss_law,
            "chosen": self.chosen.to_json(self.seq_len),
            "chinchilla": self.chinchilla.to_json(self.seq_len),
            "by_flops": {self.scale: self.by_flops[0], "tokens": self.by_flops[1]},
            "break_even_tokens": self.break_even_tokens,
            "answers_at_equal_cost": self.answers,
            "accuracy_needed_for_half": None if self.answers is None else accuracy_needed(0.5, self.answers),
            "curve": [point.to_json(self.seq_len) for point in self.curve],
            "surface": {
                "params_total": [point.model.params_total for point in self.curve],
                "tokens": list(self.token_grid),
                "loss": [[loss for loss, _ in row] for row in self.surface],
                "total_dollars": [[cost if math.isfinite(cost) else None for _, cost in row] for row in self.surface],
            },
        }


def deploy(
    law: KnownLaw,
    models: Sequence[Decoder],
    training: Training,
    device: Device,
    demand: Demand,
    *,
    loss: float | None = None,
    dollars: float | None = None,
    weights: str = "bf16",
    cache: str = "bf16",
    speculation: Speculation | None = None,
) -> Deployment:
    """The model and tokens of least total cost at `loss` (nat/token), or of least loss at a total of `dollars`.

    `models` are the shapes to choose from. Where `law` only says where the optimum lies, the losses are `LOSS_LAW`'s.
    `weights` and `cache` name the formats that are served, `loss` includes what they cost. Raises UserError when not
    exactly one of `loss` and `dollars` is given, when no shape reaches the loss, when the money does not pay for
    serving the cheapest shape, and what `serve` raises when no shape can be served.
    """
    if (loss is None) == (dollars is None):
        raise UserError("a deployment is planned for a wanted loss or for a total of dollars: give one of the two")
    known = law if law.surface else LOSS_LAW
    served = {"weights": weights, "cache": cache, "speculation": speculation}
    candidates = [_candidate(known, model, training, device, demand, served) for model in models]
    if loss is None:
        assert dollars is not None
        loss = _best_loss(candidates, dollars)
    curve = {point: candidate for candidate in candidates if (point := candidate.at_loss(loss))}
    if not curve:
        raise UserError(_out_of_reach(candidates, loss))
    chosen = min(curve, key=lambda point: point.dollars)
    if chosen.serving is None:
        raise UserError(f"no shape that reaches a loss of {loss:.4g} can be served: {curve[chosen].refusal}")
    chinchilla = min(curve, key=lambda point: point.train_dollars)
    low, high = (math.log(pick(point.tokens for point in curve)) for pick in (min, max))
    grid = tuple(math.exp(low + (high - low) * step / (GRID - 1)) for step in range(GRID))
    return Deployment(
        loss=loss,
        chosen=chosen,
        chinchilla=chinchilla,
        by_flops=least_flops(known, loss, demand.processed),
        break_even_tokens=break_even(chosen, chinchilla),
        answers=answers_at_equal_cost(chosen, chinchilla, demand),
        curve=tuple(curve),
        token_grid=grid,
        surface=tuple(tuple((one.loss(tokens), one.dollars(tokens)) for tokens in grid) for one in curve.values()),
        loss_law=known.name,
        scale=known.scale,
        seq_len=training.seq_len,
    )


def tokens_for(loss_of: Callable[[float], float], loss: float) -> float | None:
    """Fewest training tokens with `loss_of(tokens)` at most `loss`; None where no number of them is enough.

    `loss_of` falls, and may rise again beyond a minimum, as it does when the weights are rounded afterwards.
    """
    low, high, there = FEWEST, FEWEST, loss_of(FEWEST)
    while there > loss:
        if high > MOST:
            return None
        low, high, before = high, 4 * high, there
        there = loss_of(high)
        if there >= before and there > loss:
            high = _least(loss_of, low / 4, high)
            if loss_of(high) > loss:
                return None
            break
    if high == FEWEST:
        return FEWEST
    low, high = math.log(min(low, high) / 4), math.log(high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if loss_of(math.exp(middle)) > loss else (low, middle)
    return math.exp(high)


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is least between two positive ends: golden sections of the logarithm."""
    low, high = math.log(low), math.log(high)
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = function(math.exp(left)), function(math.exp(right))
    for _ in range(BISECTIONS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = function(math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = function(math.exp(right))
    return math.exp((low + high) / 2)


def least_flops(law: KnownLaw, loss: float, served_tokens: float) -> tuple[float, float]:
    """The (x, tokens) that reach `loss` with least training and serving FLOP (arXiv 2401.00448, sec. 2).

    Continuous in x: 6·N·D + 2·N·served where the law counts parameters, M·D + M·served/3 where it counts M. Raises
    UserError for a loss that the law says nothing reaches.
    """
    surface, unit = law.surface, FLOPS_PER_UNIT[law.scale]
    assert surface is not None  # the caller chose a law that has one
    if not loss > surface.E:
        raise UserError(f"a loss of {loss:.4g} is out of reach: the law {law.name} ends at {surface.E:.4g}")

    def flops(x: float) -> float:
        tokens = tokens_for(lambda d: surface.loss(x, d), loss)
        return math.inf if tokens is None else unit * x * (tokens + served_tokens / 3)

    # A model without limit of data ends at E + A^k x^(-alpha k): the smallest scale is where that is the loss.
    smallest = (surface.A**surface.k / (loss - surface.E)) ** (1 / (surface.alpha * surface.k))
    x = _least(flops, smallest * (1 + 1e-9), smallest * 1e4)
    tokens = tokens_for(lambda d: surface.loss(x, d), loss)
    assert tokens is not None  # x is above the smallest
    return x, tokens


def break_even(one: Point, other: Point) -> float | None:
    """Tokens served from which the model that costs less a token is the cheaper one in all; None where one always is.

    The difference of the training costs over that of the costs of a served token, prompt and answer in the demand's
    proportion.
    """
    if one.serving is None or other.serving is None:
        return None
    saved = other.serving.dollars_per_token - one.serving.dollars_per_token
    extra = one.train_dollars - other.train_dollars
    return extra / saved if extra * saved > 0 else None


def answers_at_equal_cost(small: Point, large: Point, demand: Demand) -> float | None:
    """Answers a question that `small` can give for what `large` costs in all with `demand`; None if not even one.

    `accuracy_needed` says how accurate each must then be to be right as often.
    """
    if small.serving is None or large.serving is None:
        return None
    left = (large.dollars - small.train_dollars) / demand.questions
    prompt = demand.prompt_tokens * small.serving.dollars_per_million_prompt / 1e6
    answer = demand.answer_tokens * small.serving.dollars_per_million_answer / 1e6
    return (left - prompt) / answer if left >= prompt + answer else None


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A shape with everything about it that does not depend on how long it is trained."""

    model: Decoder
    params: int
    x: float
    surface: Surface
    bits: int
    share: float
    unique_tokens: float | None
    dollars_per_token: float
    serving: Serving | None
    refusal: str

    def loss(self, tokens: float) -> float:
        """Loss of the model as it is served after `tokens` training tokens."""
        worth = effective_tokens(tokens, self.unique_tokens) if self.unique_tokens else tokens
        rounded = rounding_penalty(self.params, tokens, self.bits)
        return self.surface.loss(self.share * self.x, worth) + rounded

    def dollars(self, tokens: float) -> float:
        """Training and serving."""
        return tokens * self.dollars_per_token + (self.serving.dollars if self.serving else math.inf)

    def at(self, tokens: float) -> Point:
        """Trained on `tokens`."""
        train = tokens * self.dollars_per_token
        return Point(self.model, tokens, self.loss(tokens), train, self.serving)

    def at_loss(self, loss: float) -> Point | None:
        """Trained until it reaches `loss`; None where it never does."""
        tokens = tokens_for(self.loss, loss)
        return None if tokens is None else self.at(tokens)


def _candidate(
    law: KnownLaw, model: Decoder, training: Training, device: Device, demand: Demand, served: dict[str, Any]
) -> _Candidate:
    assert law.surface is not None  # the caller chose a law that has one
    serving, refusal = None, ""
    try:
        serving = serve(model, device, demand, **served)
    except UserError as error:
        refusal = str(error)
    return _Candidate(
        model=model,
        params=model.params_total,
        x=scale_of(model, law.scale, training.seq_len),
        surface=law.surface,
        bits=format_named(served["weights"]).bits,
        share=effective_share(cache_bits=format_named(served["cache"]).bits),
        unique_tokens=training.unique_tokens,
        dollars_per_token=training.dollars_per_token(model),
        serving=serving,
        refusal=refusal,
    )


def _best_loss(candidates: Sequence[_Candidate], dollars: float) -> float:
    """The least loss that `dollars` pay for, each shape trained with what serving it leaves, or on less."""
    if not dollars > 0:
        raise UserError(f"{dollars:g} dollars pay for nothing: give a total above 0")
    served = [one for one in candidates if one.serving]
    if not served:
        raise UserError(candidates[0].refusal)
    found = []
    for one in served:
        most = (dollars - one.dollars(0)) / one.dollars_per_token
        if most > FEWEST:
            # Tokens beyond the valley of a rounded model would only raise its loss.
            found.append(one.loss(min(most, _least(one.loss, FEWEST, MOST))))
    if not found:
        least = min(one.dollars(FEWEST) for one in served)
        raise UserError(
            f"{dollars:.4g} dollars do not pay for serving this demand: the cheapest shape takes {least:.4g}"
        )
    return min(found) * (1 + 1e-12)


def _out_of_reach(candidates: Sequence[_Candidate], loss: float) -> str:
    """What the best shape reaches, and the law's own end."""
    best = min(one.loss(_least(one.loss, FEWEST, MOST)) for one in candidates)
    return (
        f"a loss of {loss:.4g} nat/token is out of reach: the shapes offered end at {best:.4g}, and the law at "
        f"{candidates[0].surface.E:.4g}; ask for more"
    )
