"""What is asked of the engine, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, Protocol, Self

from torch import Tensor

from nachim.spec import UserError

FinishReason = Literal["stop", "length", "abort", "error"]
"""Why a sample ended: by a stop or the end-of-text token, by its limit of tokens, because it was told to, or because no
token could follow: its logits are not finite, or its constraint allows none."""

LARGEST_BIAS = 100.0
"""Of a logit, either way: what the OpenAI interface allows; with it a token is as good as certain, or forbidden."""
MOST_SAMPLES, MOST_TOP, SEEDS = 128, 128, 1 << 63


class Constraint(Protocol):
    """What a sample may say, told token by token: a grammar's state. The engine forks one for each sample."""

    def allowed(self) -> Tensor:
        """Which tokens may come next, bool [V]. An end-of-text token counts as a token."""

    def allows(self, token: int) -> bool:
        """Whether this token may come next: as `allowed` says, and sooner."""

    def accept(self, token: int) -> None:
        """Take in the token that was chosen."""

    def fork(self) -> Self:
        """An independent copy in the same state."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when they end; UserError, naming the field, for a value that makes no sense.

    The order is that of transformers: bias and penalties on the logits, temperature, then top-k, top-p and min-p.
    Log-probabilities are those of the distribution before temperature and truncation, so that they do not depend on
    how a token was chosen; penalties and biases are not in them either.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    """0 takes the likeliest token, the lowest number among equals."""
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    """None draws one for the request; the same seed gives the same tokens, whatever else is being served."""
    n: int = 1
    best_of: int | None = None
    """Samples drawn, of which the `n` of the highest mean log-probability are given back; None draws `n`."""
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    stop: str | Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else _tuple(self, "stop"))
        object.__setattr__(self, "stop_tokens", _tuple(self, "stop_tokens"))
        if not isinstance(self.logit_bias, Mapping):
            self.refuse("logit_bias", f"is {self.logit_bias!r}; it maps token ids to what is added to their logits")
        object.__setattr__(self, "logit_bias", {**self.logit_bias})
        self.check()

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise UserError about the field `name`."""
        raise UserError(f"{name} {why}")

    def check(self) -> None:
        """Refuse what no vocabulary could serve."""
        self._whole("max_tokens", 1, None)
        self._whole("n", 1, MOST_SAMPLES)
        self._whole("top_logprobs", 0, MOST_TOP)
        for name, least, most in (("top_k", 1, None), ("seed", 0, SEEDS - 1)):
            if getattr(self, name) is not None:
                self._whole(name, least, most)
        if self.best_of is not None:
            self._whole("best_of", self.n, MOST_SAMPLES)
        for name in ("logprobs", "prompt_logprobs", "ignore_eos"):
            if not isinstance(getattr(self, name), bool):
                self.refuse(name, f"is {getattr(self, name)!r}; it must be True or False")
        self._number("temperature", 0, math.inf)
        self._number("top_p", 0, 1, above=True)
        self._number("min_p", 0, 1)
        self._number("repetition_penalty", 0, math.inf, above=True)
        self._number("presence_penalty", -2, 2)
        self._number("frequency_penalty", -2, 2)
        self._check_lists()

    def _check_lists(self) -> None:
        for text in self.stop:
            if not isinstance(text, str) or not text:
                self.refuse("stop", f"holds {text!r}; each must be a string that is not empty")
        for token in self.stop_tokens:
            if type(token) is not int or token < 0:
                self.refuse("stop_tokens", f"holds {token!r}; each must be a token id")
        for token, bias in self.logit_bias.items():
            if type(token) is not int or token < 0:
                self.refuse("logit_bias", f"is for {token!r}; its keys must be token ids")
            if not _is_number(bias) or not -LARGEST_BIAS <= bias <= LARGEST_BIAS:
                self.refuse("logit_bias", f"of token {token} is {bias!r}; it must be between -100 and 100")

    def check_tokens(self, vocab_size: int) -> None:
        """Refuse tokens beyond a vocabulary."""
        for name in ("logit_bias", "stop_tokens"):
            beyond = [token for token in getattr(self, name) if token >= vocab_size]
            if beyond:
                self.refuse(name, f"names token {beyond[0]}; the vocabulary has {vocab_size}, counted from 0")

    def _whole(self, name: str, least: int, most: int | None) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < least or (most is not None and value > most):
            bounds = f"of at least {least}" if most is None else f"between {least} and {most}"
            self.refuse(name, f"is {value!r}; it must be a whole number {bounds}")

    def _number(self, name: str, least: float, most: float, above: bool = False) -> None:
        value = getattr(self, name)
        if _is_number(value) and least <= value <= most and not (above and value == least):
            return
        high = "" if most == math.inf else f" and at most {most}"
        self.refuse(
            name, f"is {value!r}; it must be a finite number {'above' if above else 'of at least'} {least}{high}"
        )

    @property
    def samples(self) -> int:
        """Sequences that are generated at once."""
        return self.best_of or self.n

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0

    @property
    def whole(self) -> bool:
        """Whether nothing is cut off the law, or it is of one token."""
        return self.greedy or (self.top_k is None and self.top_p == 1 and self.min_p == 0)

    @property
    def plain(self) -> bool:
        """Whether logits are taken as they are."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return not self.logit_bias and not penalties

    def seeded(self, seed: int) -> Sampling:
        """The same with a seed where it has none."""
        return self if self.seed is not None else replace(self, seed=seed)


def _tuple(sampling: Sampling, name: str) -> tuple[Any, ...]:
    value = getattr(sampling, name)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        sampling.refuse(name, f"is {value!r}; it must be a list")
    return tuple(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt and what to do with it. Lower `priority` goes first; among equals, who came first."""

    id: int
    prompt: tuple[int, ...]
    sampling: Sampling
    priority: int = 0
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Chunk:
    """What one step of the engine says of one sample: new tokens, or none where it only ends."""

    request: int
    sample: int
    tokens: tuple[int, ...]
    text: str
    """What may be shown now: text that may yet turn out to begin a stop string is held back."""
    logprobs: tuple[float, ...] = ()
    """Of each token, nat, where they were asked for."""
    top: tuple[dict[int, float], ...] = ()
    """Of each token, the likeliest `top_logprobs` tokens in its place."""
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """One finished sample."""

    request: int
    sample: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    """Up to a stop string, which is left out; the tokens are all that were generated, an end-of-text token included."""
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None = None
    """Of each token, nat; None where they were not asked for."""
    top: tuple[dict[int, float], ...] | None = None
    prompt_logprobs: tuple[float | None, ...] | None = None
    """Of each token of the prompt after those before it; None for the first, which has none."""
    samples: tuple[Completion, ...] = ()
    """All `n` samples of the request, this one first, where there are several."""
