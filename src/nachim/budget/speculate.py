"""Speculative decoding: a cheap draft proposes, one pass of the model verifies (arXiv 2211.17192). Pure Python."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec import Part

MOST_DRAFTED = 16
"""Longest draft that is tried; the published ones guess 2 to 10 tokens (arXiv 2211.17192, table 1)."""


@dataclass(frozen=True, kw_only=True)
class Speculation(Part):
    """A draft model: the chance that a guess of it is `acceptance`-ed, and its cost as a share of the model's.

    `draft_cost` is c of arXiv 2211.17192, sec. 3.3, for time, FLOPs and bytes alike: the draft has that share of the
    weights and of the cache.
    """

    acceptance: float
    draft_cost: float

    def check(self) -> None:
        if not 0 <= self.acceptance < 1:
            self.refuse("acceptance", f"is {self.acceptance}; it is a chance, from 0 to below 1")
        if not 0 <= self.draft_cost < 1:
            self.refuse("draft_cost", f"is {self.draft_cost}; it is the draft's share of the model's cost, below 1")


def tokens_per_pass(acceptance: float, drafted: int) -> float:
    """Expected tokens of one verifying pass over `drafted` guesses: (1-a^(g+1))/(1-a) (arXiv 2211.17192, eq. 1)."""
    return sum(acceptance**place for place in range(drafted + 1))
