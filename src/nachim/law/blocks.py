"""Several treatments, each run once by every seed: which is best, what the others cost, and where between them the
bottom lies.

Seeds are the blocks of a randomised complete block design: what a seed adds to all of its runs drops out of every
comparison, and what is left beside the treatments' means is noise, pooled over all treatments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from nachim.law.forms import Array
from nachim.law.interval import quantiles
from nachim.spec.error import UserError

FEWEST, NEAR = 4, 0.05
"""A parabola is laid through four treatments or more, those within this share of the least loss."""
DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Blocks:
    """Losses by treatment and seed, [treatments, seeds]: every number above 0. Comparisons are of log loss.

    Raises UserError for another shape, or a loss that is not positive.
    """

    loss: Array

    def __post_init__(self) -> None:
        if self.loss.ndim != 2 or not self.loss.size or not (np.isfinite(self.loss) & (self.loss > 0)).all():
            raise UserError("the losses of treatments by seeds must be a full table of positive numbers")

    @property
    def means(self) -> Array:
        """Mean log loss of each treatment."""
        return np.asarray(np.log(self.loss).mean(axis=1))

    @property
    def best(self) -> int:
        """The treatment of the least mean."""
        return int(np.argmin(self.means))

    @property
    def freedom(self) -> int:
        """Degrees of freedom of `noise`: 0 where one seed or one treatment tells nothing of it."""
        treatments, seeds = self.loss.shape
        return (treatments - 1) * (seeds - 1)

    @property
    def noise(self) -> float:
        """Standard deviation of a run's log loss beside its treatment's and its seed's; NaN without `freedom`."""
        log = np.log(self.loss)
        left = log - log.mean(axis=1, keepdims=True) - log.mean(axis=0, keepdims=True) + log.mean()
        return float(np.sqrt((left**2).sum() / self.freedom)) if self.freedom else float("nan")

    def over_best(self, level: float = 0.95) -> Array:
        """By what share each treatment's loss is above the best one's: [treatments, 3], with the ends of its interval.

        The ends are those of Student's t of the difference of two means; for two treatments, of the paired t-test.
        NaN without `freedom`.
        """
        off = self.means - self.means[self.best]
        reach = float("nan")
        if self.freedom:
            spread = self.noise * np.sqrt(2 / self.loss.shape[1])
            reach = float(stats.t.ppf((1 + level) / 2, self.freedom) * spread)
        return np.expm1(np.stack([off, off - reach, off + reach], axis=1))

    def bottom(self, at: Array, seed: int = 0) -> tuple[float, float, float] | None:
        """Where on the axis `at` [treatments] the loss is least, with its 90 % interval: a parabola in log `at`.

        Its noise is that of the means, or by how much they miss the parabola if that is more. None where fewer than
        four treatments are near the best, or the bottom lies outside of them.
        """
        near = self.means < self.means.min() + NEAR
        log_x, log_loss, seeds = np.log(at[near]), self.means[near], self.loss.shape[1]
        if near.sum() < FEWEST:
            return None
        middle, span = log_x.mean(), (float(log_x.min()), float(log_x.max()))
        curve = np.polyfit(log_x - middle, log_loss, 2)
        off = log_loss - np.polyval(curve, log_x - middle)
        missed = np.sqrt((off**2).sum() / max(1, len(off) - 3))
        noise = np.nanmax([self.noise / np.sqrt(seeds), missed])
        drawn = log_loss - off + noise * np.random.default_rng(seed).standard_normal((DRAWS, len(off)))
        places = [_vertex(one, middle, span) for one in np.polyfit(log_x - middle, drawn.T, 2).T]
        place = _vertex(curve, middle, span)
        if place in span:
            return None
        low, high = quantiles(np.array(places))
        return float(np.exp(place)), float(np.exp(low)), float(np.exp(high))


def _vertex(curve: Array, middle: float, span: tuple[float, float]) -> float:
    """The lowest point of a parabola within `span`."""
    if curve[0] > 0:
        return float(np.clip(middle - curve[1] / (2 * curve[0]), *span))
    return min(span, key=lambda end: float(np.polyval(curve, end - middle)))
