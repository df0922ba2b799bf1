"""How a run is kept safe: which of its checkpoints stay, and what is done about a step that went wrong."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class Keep(Part):
    """Which checkpoints a run leaves: the newest `last`, every `every`-th step's, and the `best` validation loss's.

    While a run trains one more stays, to fall back on.
    """

    last: int = 1
    every: int | None = None
    best: bool = False

    def check(self) -> None:
        self.require_positive("last")
        if self.every is not None:
            self.require_positive("every")


@dataclass(frozen=True, kw_only=True)
class OnSpike(Part):
    """Base of what is done about a step whose loss or gradient norm is not finite, or stands out."""


@dataclass(frozen=True, kw_only=True)
class Stop(OnSpike):
    """The run ends before its weights change: a value is not finite, or the smoothed loss has risen by 1 nat/token."""


@dataclass(frozen=True, kw_only=True)
class Outliers(OnSpike):
    """Base of answers to a single step that stands out.

    It does when its loss or gradient norm is not finite, or lies more than `sigmas` standard deviations above the mean
    of the last `window` good steps. A deviation of less than 1 % of the mean counts as 1 %.
    """

    sigmas: float = 6.0
    window: int = 128

    def check(self) -> None:
        self.require_positive("sigmas")
        if self.window < 2:
            self.refuse("window", f"is {self.window}; it must be at least 2 steps")


@dataclass(frozen=True, kw_only=True)
class SkipStep(Outliers):
    """The step counts, but the weights stay; more than `limit` such steps in a row, or a lasting rise, end the run."""

    limit: int = 8

    def check(self) -> None:
        super().check()
        self.require_positive("limit")


@dataclass(frozen=True, kw_only=True)
class RollBack(Outliers):
    """Back to the last checkpoint at a multiple of `every` steps, and on with the data after the fault.

    So was PaLM trained (arXiv 2204.02311, sec. 5.1). A lasting rise of the smoothed loss is answered in the same way;
    after `limit` times the run ends. Where it goes back to follows from the steps alone, never from the clock, so that
    an interrupted run does the same.
    """

    every: int = 100
    limit: int = 3

    def check(self) -> None:
        super().check()
        self.require_positive("every", "limit")
