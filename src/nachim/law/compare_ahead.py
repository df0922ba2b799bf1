"""What a pair of runs beyond the ladders will show, if the worth that the ladders found goes on as it did.

The worth and its trend are carried to the compute of the new runs, and both sides' losses there follow from the
baseline's law: log L_idea - log L_base = log L_base(x·m^a, D·m^b) - log L_base(x, D). What is predicted is this
difference, which the runs measure; the multiplier is what it comes to by the same law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from nachim.law.compare import FURTHEST, STEP, Worth
from nachim.law.forms import Array

Span = tuple[float, float, float]
"""A value and the ends of its interval."""


@dataclass(frozen=True)
class Ahead:
    """Of `pairs` pairs of runs: the idea's loss over the baseline's (their geometric mean), and the multiplier of
    compute that this comes to, each with its 95 % prediction interval."""

    ratio: Span
    multiplier: Span


def ahead(worth: Worth, flops_per_token: float, tokens: float, pairs: int = 1) -> Ahead:
    """What `pairs` pairs of `flops_per_token` on `tokens` each will show.

    The interval holds what the ladders leave open, of the worth, its trend and the law, and the noise of the pairs. It
    does not hold that the worth may leave its line in log C.
    """
    place = _Place(worth, flops_per_token, tokens)
    value, slope = place.difference(place.log_multiplier)
    error, freedom = worth.solved.spread(slope)
    reach = float(stats.t.ppf(0.975, freedom)) * float(np.hypot(error, worth.noise / np.sqrt(pairs)))
    ends = (value, value - reach, value + reach)
    middle, high, low = (place.multiplier(end) for end in ends)  # the larger loss is the smaller worth
    ratio, least, most = np.exp(ends).tolist()
    return Ahead((ratio, least, most), (middle, low, high))


def multiplier_of(worth: Worth, flops_per_token: float, tokens: float, ratio: float) -> float:
    """The multiplier of compute that the idea's loss over the baseline's, `ratio`, comes to by the ladders' law."""
    return _Place(worth, flops_per_token, tokens).multiplier(float(np.log(ratio)))


class _Place:
    """A scale and a number of tokens beyond the ladders."""

    def __init__(self, worth: Worth, flops_per_token: float, tokens: float) -> None:
        self.worth, self.surface = worth, worth.surface
        self.log_x, self.log_tokens = np.log([flops_per_token]), np.log([tokens])
        effects = len(worth.solved.point) - len(self.surface.start)
        trending = worth.trend is not None
        away = float(self.log_x[0] + self.log_tokens[0]) - worth.centre
        tilt = float(self.surface.offset(self.log_x, self.log_tokens)[0])
        self.columns: Array = np.array([1.0] + [away] * trending + [tilt] * (effects - 1 - trending))
        self.law: Array = worth.solved.point[effects:]

    @property
    def log_multiplier(self) -> float:
        """By the worth's line."""
        return float(self.worth.solved.point[: len(self.columns)] @ self.columns)

    def difference(self, log_m: float) -> tuple[float, Array]:
        """Log loss of the idea less the baseline's where it is worth `log_m`, and its slope in the whole point."""
        ends = [self._expand(each) for each in (0.0, log_m, log_m - STEP, log_m + STEP)]
        fall = (ends[3][0] - ends[2][0]) / (2 * STEP)
        slope = np.concatenate([self.columns * fall, ends[1][1] - ends[0][1]])
        return ends[1][0] - ends[0][0], slope

    def multiplier(self, difference: float) -> float:
        """That which makes up for such a difference in log loss, no farther from 1 than what is looked for."""
        reach = float(np.log(FURTHEST))
        base = self._expand(0.0)[0] + difference
        low, high = (self._expand(end)[0] - base for end in (-reach, reach))
        if low <= 0 or high >= 0:
            return float(np.exp(-reach if low <= 0 else reach))
        return float(np.exp(optimize.brentq(lambda log_m: self._expand(log_m)[0] - base, -reach, reach)))

    def _expand(self, log_m: float) -> tuple[float, Array]:
        share = self.surface.share
        value, slope = self.surface.expand(self.law, self.log_x + share * log_m, self.log_tokens + (1 - share) * log_m)
        return float(value[0]), slope[:, 0]
