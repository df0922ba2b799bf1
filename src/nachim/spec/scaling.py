"""Parts that stretch rotary frequencies to contexts longer than the one trained on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from nachim.spec.part import Part

Frequencies = Sequence[float]
"""Radians that each pair of channels turns from one position to the next, the fastest pair first."""


@dataclass(frozen=True, kw_only=True)
class Scaling(Part, ABC):
    """Base of how rotary frequencies change, to read contexts `factor` times as long as those trained on."""

    factor: float

    def check(self) -> None:
        if not self.factor >= 1:
            self.refuse("factor", f"is {self.factor}; it must be at least 1, which leaves the context as it is")

    @property
    def until(self) -> int | None:
        """Longest context that has the frequencies of the shortest; None where they depend on no length."""
        return None

    @property
    def magnitude(self) -> float:
        """Factor on the cosines and sines of every context: its square stands on the scores."""
        return 1.0

    @property
    def latent_score(self) -> float:
        """The `score_factor` of an `MLA` that turns by these frequencies, as DeepSeek has it."""
        return 1.0

    @abstractmethod
    def stretched(self, plain: Frequencies, theta: float, length: int) -> list[float]:
        """The `plain` frequencies, of base `theta`, as they are in a context of `length` tokens."""

    def misfit(self, pairs: int) -> str | None:
        """Why it cannot serve a mixer `pairs` pairs of whose heads turn; None where it can."""
        return None


@dataclass(frozen=True, kw_only=True)
class Interpolated(Scaling):
    """Position interpolation: positions divided by `factor` (arXiv 2306.15595, eq. 4; "linear" in Hugging Face)."""

    def stretched(self, plain: Frequencies, theta: float, length: int) -> list[float]:
        return [frequency / self.factor for frequency in plain]


@dataclass(frozen=True, kw_only=True)
class NTKAware(Scaling):
    """A larger base: the slowest pair turns `factor` times slower, the fastest as before (arXiv 2309.00071, sec. 3.1).

    theta is multiplied by factor^(d / (d - 2)), d being the channels that turn.
    """

    def stretched(self, plain: Frequencies, theta: float, length: int) -> list[float]:
        return rebased(plain, self.factor)


@dataclass(frozen=True, kw_only=True)
class DynamicNTK(Scaling):
    """`NTKAware` whose factor grows with the context, from 1 at `original` tokens (arXiv 2309.00071, sec. 3.3).

    At `length` tokens it is factor * length / original - (factor - 1), as in Hugging Face ("dynamic"). Keys in a cache
    stay as they were turned: beyond `original` what is written token by token is not what is read at once.
    """

    original: int

    def check(self) -> None:
        super().check()
        self.require_positive("original")

    @property
    def until(self) -> int | None:
        return self.original

    def stretched(self, plain: Frequencies, theta: float, length: int) -> list[float]:
        grown = max(length, self.original) / self.original
        return rebased(plain, self.factor * grown - (self.factor - 1))


@dataclass(frozen=True, kw_only=True)
class YaRN(Scaling):
    """Fast pairs stay, slow pairs are interpolated, scores grow sharper (arXiv 2309.00071, sec. 3.2 and 3.4).

    A pair stays that turns more than `beta_fast` times within the `original` context, is slowed down by `factor` where
    it turns less than `beta_slow` times, and lies on a line between them; `truncate` rounds the line's ends to whole
    pairs. Cosines and sines are multiplied by `attention_factor`: unless given, 0.1 ln(factor) + 1, or with `mscale`
    and `mscale_all_dim`, as DeepSeek-V2 has it, the ratio of 0.1 m ln(factor) + 1 for each; the square of the second
    is then the `score_factor` of its `MLA`.
    """

    original: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def check(self) -> None:
        super().check()
        self.require_positive("original", "beta_fast", "beta_slow")
        if self.beta_fast < self.beta_slow:
            self.refuse("beta_fast", f"is {self.beta_fast}; it must be at least beta_slow={self.beta_slow}")
        if self.attention_factor is not None:
            self.require_positive("attention_factor")

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._sharper(self.mscale) / self._sharper(self.mscale_all_dim)
        return self._sharper(1.0)

    @property
    def latent_score(self) -> float:
        return self._sharper(self.mscale_all_dim or 0.0) ** 2

    def _sharper(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1

    def stretched(self, plain: Frequencies, theta: float, length: int) -> list[float]:
        first, last = self._pair(self.beta_fast, theta, len(plain)), self._pair(self.beta_slow, theta, len(plain))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * len(plain) - 1)
        span = last - first or 0.001
        slow = [min(1.0, max(0.0, (pair - first) / span)) for pair in range(len(plain))]
        return [f * (share / self.factor + 1 - share) for f, share in zip(plain, slow, strict=True)]

    def _pair(self, turns: float, theta: float, pairs: int) -> float:
        """The pair, as a real number, that turns `turns` times within the original context."""
        return pairs * math.log(self.original / (turns * math.tau)) / math.log(theta)


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling(Scaling):
    """Llama 3.1's: as YaRN's frequencies, the line between the two ends drawn over turns in place of pairs.

    A pair stays that turns more than `high` times within the `original` context, and is slowed down by `factor` where
    it turns less than `low` times.
    """

    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def check(self) -> None:
        super().check()
        self.require_positive("low", "original")
        if not self.high > self.low:
            self.refuse("high", f"is {self.high}; it must be above low={self.low}")

    def stretched(self, plain: Frequencies, theta: float, length: int) -> list[float]:
        found = []
        for frequency in plain:
            turns = self.original * frequency / math.tau
            kept = min(1.0, max(0.0, (turns - self.low) / (self.high - self.low)))
            found.append(frequency * ((1 - kept) / self.factor + kept))
        return found


@dataclass(frozen=True, kw_only=True)
class LongRoPE(Scaling):
    """Each pair has a divisor of its own, found by search (arXiv 2402.13753; Phi-3, arXiv 2404.14219).

    They are `short` in contexts up to `original` tokens, `long` beyond. Cosines and sines are multiplied by
    `attention_factor`: unless given, sqrt(1 + ln(factor) / ln(original)), with `factor` the longest context over the
    original. Keys in a cache stay as they were turned: whoever goes on beyond `original` must read all tokens again.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    attention_factor: float | None = None

    def check(self) -> None:
        super().check()
        if self.original < 2:
            self.refuse("original", f"is {self.original}; it must be at least 2 tokens")
        if len(self.short) != len(self.long):
            self.refuse("long", f"has {len(self.long)} divisors, short has {len(self.short)}")
        if not min((*self.short, *self.long), default=0.0) > 0:
            self.refuse("short", "and long need divisors above 0, one for each pair of channels that turns")
        if self.attention_factor is not None:
            self.require_positive("attention_factor")

    @property
    def until(self) -> int | None:
        return self.original

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if self.factor == 1 else math.sqrt(1 + math.log(self.factor) / math.log(self.original))

    def stretched(self, plain: Frequencies, theta: float, length: int) -> list[float]:
        divisors = self.long if length > self.original else self.short
        return [frequency / divisor for frequency, divisor in zip(plain, divisors, strict=True)]

    def misfit(self, pairs: int) -> str | None:
        if pairs == len(self.short):
            return None
        return f"has heads of {pairs} pairs to turn; LongRoPE has {len(self.short)} divisors for them"


def rebased(plain: Frequencies, slower: float) -> list[float]:
    """Frequencies of a base so much larger that the slowest pair turns `slower` times slower.

    theta * slower^(d / (d - 2)) divides the frequency of pair i by slower^(i / (pairs - 1)).
    """
    last = max(1, len(plain) - 1)
    return [frequency * slower ** (-pair / last) for pair, frequency in enumerate(plain)]
