"""Prediction intervals: what the parameters, the run noise and the choice of law each leave open.

A prediction is a Monte-Carlo mixture in log loss. Each law brings bootstrap refits in proportion to its
rollout weight (so laws that disagree widen it), and every draw gets run noise. The band between its
quantiles is then stretched by a conformal factor learned on growing-budget rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from nachim.law.forms import Array, Law, Sample
from nachim.law.solve import minimise

LARGEST_FACTOR = 3.0
"""Cap of the conformal factor: beyond it the law is wrong (see `select.regime`), not merely uncertain."""


def noise_sd(residuals: Array, size: int) -> float:
    """Run noise in log units: root mean square residual with n - size degrees of freedom."""
    return float(np.sqrt((residuals**2).sum() / max(1, len(residuals) - size)))


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


def mixture(predictions: Sequence[Array], shares: Sequence[float], noise: float, rng: np.random.Generator) -> Array:
    """Draws (about draws, n) of log loss: `predictions` (draws, n) of each law by its share, plus noise."""
    most = max(len(p) for p in predictions)
    kept = [p[: round(share * most)] for p, share in zip(predictions, shares, strict=True)]
    pooled = np.concatenate(kept)
    return pooled + noise * rng.standard_normal(pooled.shape)


def band(draws: Array, centre: Array, level: float, noise: float) -> tuple[Array, Array]:
    """How far the central `level` of `draws` (m, n) reaches below and above `centre` (n,).

    At least as far as run noise alone does, either way: the forecast of one law may lie outside the mixture.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    least = noise * NormalDist().inv_cdf((1 + level) / 2)
    return np.maximum(centre - low, least), np.maximum(high - centre, least)


def conformal_factor(scores: Array, far: Array, level: float = 0.9) -> float:
    """The stretch that would have covered `level` of the rollouts, within [1, LARGEST_FACTOR].

    `scores` (m,) are |error| over half-width, weighted by how `far` (m,) each forecast extrapolated: the
    factor is for extrapolation. The quantile is ceil((m + 1)·level)/m (split conformal prediction, arXiv
    2107.07511 section 1, weighted as in arXiv 1904.06019). The forecasts of one cut are not independent, so
    its guarantee is only approximate here, and coverage is tested. Without scores the factor is 1.
    """
    if not len(scores):
        return 1.0
    rank = min(1.0, math.ceil((len(scores) + 1) * level) / len(scores))
    stretch = np.quantile(scores, rank, weights=far, method="inverted_cdf")
    return float(np.clip(stretch, 1.0, LARGEST_FACTOR))


def quantiles(values: Array, level: float = 0.9) -> tuple[float, float]:
    """The central `level` of `values`."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
