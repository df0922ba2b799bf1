"""Prediction intervals: what the parameters, the run noise and the choice of law each leave open.

A prediction is a mixture of normal distributions in log loss, one for each view (a law under a focus, see
`nachim.law.select`) by its share: views that disagree widen it, and each brings the uncertainty of its parameters and
the noise of one run. The central band is then stretched by a conformal factor learned on growing-budget rollouts.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from scipy import special

from nachim.law.forms import Array, Law, Sample
from nachim.law.solve import minimise

LARGEST_FACTOR = 3.0
"""Cap of the conformal factor: beyond it the law is wrong (see `regime`), not merely uncertain."""
PERFECT = 2.0
"""How many cuts' worth a perfect band counts beside those seen (see `conformal_factor`)."""
OUTLYING = 3.0
"""Residuals count up to so many robust standard deviations."""
MAD = 1 / NormalDist().inv_cdf(0.75)
"""Standard deviation of a normal distribution over its median absolute deviation."""


def noise_sd(residuals: Array, size: int) -> float:
    """Run noise in log units: root mean square residual with n - size degrees of freedom."""
    return float(np.sqrt((residuals**2).sum() / max(1, len(residuals) - size)))


def noise_under(residuals: Array, weight: Array, size: int) -> tuple[float, float]:
    """Run noise in log units of `residuals` (n,) that count by `weight` (n,), and how far few runs widen its 90 % band.

    Residuals are cut at OUTLYING robust standard deviations. The weights are worth (sum w)² / sum w² runs; the second
    number is Student's quantile, with that less `size` degrees of freedom, over the normal one.
    """
    total = weight.sum()
    order = np.argsort(np.abs(residuals))
    middle = np.searchsorted(np.cumsum(weight[order]), total / 2)
    limit = OUTLYING * MAD * abs(residuals[order[min(middle, len(order) - 1)]])
    inside = np.clip(residuals, -limit, limit)
    worth = total**2 / (weight**2).sum()
    freedom = max(1.0, worth - size)
    sd = math.sqrt((weight * inside**2).sum() / total * worth / freedom)
    return sd, float(special.stdtrit(freedom, 0.95) / special.ndtri(0.95))


def bootstrap(law: Law, sample: Sample, points: Array, weights: Array, draws: int, rng: np.random.Generator) -> Array:
    """Residual bootstrap of several fits at once: refits (m, draws, size) for `points` (m, size).

    Row i was fitted with `weights[i]` (n,). Residuals are inflated by their leverage, r/sqrt(1-h), centred,
    and redrawn among the runs in use; each refit starts from its fit, so it takes a few steps.
    """
    targets = []
    for point, weight in zip(points, weights, strict=True):
        value, slope, _ = law.expand(point, *sample.inputs)
        use = np.flatnonzero(weight > 0)
        basis, _ = np.linalg.qr((slope[:, use] * np.sqrt(weight[use])).T)
        leverage = np.minimum((basis**2).sum(axis=1), 0.9)
        residual = (sample.log_loss - value)[use] / np.sqrt(1 - leverage)
        drawn = rng.choice(residual - residual.mean(), size=(draws, len(value)))
        targets.append(value + drawn)
    start = np.repeat(points, draws, axis=0)
    spread = np.repeat(weights, draws, axis=0)
    refits, _ = minimise(law, sample.inputs, np.concatenate(targets), spread, start)
    return refits.reshape(len(points), draws, law.size)


def half_width(level: float, centre: Array, means: Array, spreads: Array, shares: Array) -> Array:
    """How far to either side of `centre` (...) a mixture of normal distributions holds `level`, (...).

    `means` and `spreads` (v, ...) are those of its parts, `shares` (v,) or (v, ...) their weights.
    """
    share = shares.reshape(*shares.shape, *[1] * (means.ndim - shares.ndim))
    kept = (share > 0).reshape(len(share), -1).any(axis=1)
    share, means, spreads = share[kept], means[kept], spreads[kept]
    low = np.zeros_like(centre)
    high = np.where(share > 0, np.abs(means - centre) + 10 * spreads, 0.0).max(axis=0)
    for _ in range(50):
        middle = (low + high) / 2
        above = special.ndtr((centre + middle - means) / spreads)
        below = special.ndtr((centre - middle - means) / spreads)
        short = (share * (above - below)).sum(axis=0) < level
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.asarray((low + high) / 2)


def conformal_factor(scores: Array, trust: Array, level: float = 0.9) -> float:
    """The stretch that would have covered `level` of the rollouts, within 1 and LARGEST_FACTOR.

    `scores` (m,) are |error| over half-width, weighted by `trust` (m,), the dearest cut's summing to 1 (weighted split
    conformal prediction, arXiv 1904.06019). The quantile is taken over them and PERFECT cuts' worth of scores as a band
    that holds leaves them: few cuts prove little. The forecasts of one cut are not independent, so the guarantee of
    split conformal prediction does not carry over; coverage is tested. Without scores the factor is 1.
    """
    if not len(scores):
        return 1.0
    perfect = special.ndtri((1 + (np.arange(100) + 0.5) / 100) / 2) / special.ndtri((1 + level) / 2)
    every, weight = np.append(scores, perfect), np.append(trust, np.full(100, PERFECT / 100))
    stretch = np.quantile(every, level, weights=weight, method="inverted_cdf")
    return float(np.clip(stretch, 1.0, LARGEST_FACTOR))


def quantiles(values: Array, level: float = 0.9) -> tuple[float, float]:
    """The central `level` of `values`."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
