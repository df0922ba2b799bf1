"""How weights come from tokens: schedule, precision, length."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nachim.spec.optimizer import AdamW
from nachim.spec.part import Part, later
from nachim.spec.safety import Keep, OnSpike, Stop


@dataclass(frozen=True, kw_only=True)
class Schedule(Part):
    """Base of learning-rate schedules: a linear warm-up over `warmup_tokens`, then the part's own course."""

    warmup_tokens: int = 0

    def check(self) -> None:
        if self.warmup_tokens < 0:
            self.refuse("warmup_tokens", f"is {self.warmup_tokens}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak until the last token: for an optimizer that needs no decay, such as ScheduleFreeAdamW."""


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from the peak down to `final` of it at the last token (arXiv 1608.03983, eq. 5, one cycle)."""

    final: float = 0.1

    def check(self) -> None:
        super().check()
        if not 0 <= self.final <= 1:
            self.refuse("final", f"is {self.final}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """The peak until 80 % of the tokens, 31.6 % of it until 90 %, then 10 % (arXiv 2401.02954, sec. 2.3)."""


@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """Warm up, stay, then decay linearly to zero over the last `decay` of the tokens (arXiv 2405.18392).

    Until its decay begins a run is the same, bit for bit, as any longer run of the same recipe.
    """

    decay: float = 0.2

    def check(self) -> None:
        super().check()
        if not 0 < self.decay <= 1:
            self.refuse("decay", f"is {self.decay}; it must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Growth(Part):
    """A batch that grows along the run: `batch_tokens` times (t / begin_tokens)^power at token t, but at least once.

    As the loss falls a gradient's noise outgrows it (arXiv 1812.06162), so the best batch grows with tokens (arXiv
    2505.13738). A step takes whole multiples of `unit_tokens`, which divides `batch_tokens` and is that unless given: a
    batch that doubles at once lowers the loss of all runs that end behind that token, whatever their shape. Until its
    end a run takes the steps of any longer one.

    With `most` it grows to so many times and no further: power 1 is then the linear batch warm-up of GPT-3 (arXiv
    2005.14165, app. B), over `most` times `begin_tokens`.
    """

    begin_tokens: int
    power: float
    most: int | None = later(None)
    unit_tokens: int | None = later(None)

    def check(self) -> None:
        self.require_positive("begin_tokens", "power")
        for name in ("most", "unit_tokens"):
            if getattr(self, name) is not None:
                self.require_positive(name)

    def batch_tokens(self, token: int, first: int) -> int:
        """Tokens of the step that begins at `token`, where the run's first step takes `first`."""
        unit = self.unit_tokens or first
        grown = max(first, unit * round(first / unit * (token / self.begin_tokens) ** self.power))
        return grown if self.most is None else min(self.most * first, grown)


@dataclass(frozen=True, kw_only=True)
class Train(Part):
    """One training run: `tokens` in steps of `batch_tokens`, which may grow; gradients are clipped to the norm `clip`.

    `micro_batch_tokens` splits a step's batch without changing its gradient, to save memory. `precision` is that of the
    matrix multiplications; weights are always kept in fp32. In fp16 the loss is scaled so that gradients do not vanish,
    and a step whose gradients overflow is skipped; in fp8 the matrices of attention and of dense feed-forwards multiply
    in 8 bits, and all else is bf16. `keep` says which checkpoints stay, `on_spike` what is done about a step that goes
    wrong.
    """

    tokens: int
    batch_tokens: int
    optimizer: AdamW
    schedule: Schedule
    growth: Growth | None = None
    clip: float = 1.0
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    micro_batch_tokens: int | None = None
    seed: int = 0
    keep: Keep = later(Keep())
    on_spike: OnSpike = later(Stop())

    def check(self) -> None:
        self.require_positive("tokens", "batch_tokens", "clip")
        if self.tokens % self.batch_tokens:
            near = max(1, round(self.tokens / self.batch_tokens)) * self.batch_tokens
            self.refuse("tokens", f"is {self.tokens}; it must be whole steps of batch_tokens, such as {near}")
        if self.micro_batch_tokens is not None and (
            self.micro_batch_tokens < 1 or self.batch_tokens % self.micro_batch_tokens
        ):
            self.refuse("micro_batch_tokens", f"is {self.micro_batch_tokens}; it must divide {self.batch_tokens}")
        if self.growth is not None and self.growth.unit_tokens and self.batch_tokens % self.growth.unit_tokens:
            self.refuse("growth", f"has a unit of {self.growth.unit_tokens}; it must divide {self.batch_tokens}")
        if self.schedule.warmup_tokens > self.tokens:
            self.refuse("schedule", f"warms up for {self.schedule.warmup_tokens} tokens of only {self.tokens}")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tokens // self.batch_tokens if self.growth is None else len(self._begins) - 1

    def token_at(self, step: int) -> int:
        """Tokens seen before `step` (from 0); `tokens` at the number of steps."""
        return step * self.batch_tokens if self.growth is None else self._begins[step]

    @property
    def largest_batch(self) -> int:
        """Tokens of the largest step."""
        return max(self.token_at(step + 1) - self.token_at(step) for step in range(self.steps))

    @functools.cached_property
    def _begins(self) -> Sequence[int]:
        assert self.growth is not None
        course = _course(self.growth, self.batch_tokens, 1 << self.tokens.bit_length())
        return (*course[: bisect.bisect_left(course, self.tokens)], self.tokens)


@functools.lru_cache(maxsize=64)
def _course(growth: Growth, first: int, end: int) -> tuple[int, ...]:
    """Tokens before each step of the runs that begin with `first` tokens, up to `end`: a ladder's share them."""
    begins = [0]
    while begins[-1] < end:
        begins.append(begins[-1] + growth.batch_tokens(begins[-1], first))
    return tuple(begins)
