"""The bowl that loss makes over the logs of learning rate, batch and their like, and how its bottom moves with scale.

At scale x and D = `tokens` the loss is s·exp(Q), where s is that cell's own level and

    Q = x^g·D^h · sum_j a_j·linex(kappa_j, p_j),   p = R·(z - mu(x, D)),
    linex(kappa, p) = (e^(kappa·p) - 1 - kappa·p)/kappa²

with z the logs of what is tuned and mu linear in log x and log D: a power law for each optimum. Linex (Varian 1975) is
p²/2 for small kappa·p, exponential on one side and linear on the other: too high a rate hurts more than one too low. R
has ones on its diagonal, so that optima may trade against each other (a larger batch wants a higher rate). Q is convex
and 0 only at mu, whatever the coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.law.forms import Array
from nachim.law.interval import MAD

NEAR = 0.01
"""Excess over the cell's best loss at which a run counts half: far up its sides no simple form of a bowl holds."""
BEND = 1.5
"""Residuals beyond this many standard deviations pull linearly: an outlier does not move the optimum."""
FARTHEST = 30.0
FEWEST_LEFT = 1e-5
"""Least standard deviation of log loss: below it, noise-free runs would leave the priors without any say."""
SERIES = 0.03
ROUNDS, SETTLED = 4, 0.02
STEPS = 300


@dataclass(frozen=True, eq=False)
class Cells:
    """Runs, normalised: `z` (n, k) centred logs of what is tuned, `design` (n, 3) of 1, log x and log D, `y` (n,) log
    loss, `cell` (n,) the number of each run's (x, D), `weight` (n,)."""

    z: Array
    design: Array
    y: Array
    cell: npt.NDArray[np.intp]
    weight: Array

    def less_mean(self, values: Array, weight: Array) -> Array:
        """`values` (n, ...) less their weighted mean in each cell: what is left once every cell has its own level."""
        total = np.maximum(np.bincount(self.cell, weight), 1e-300)
        flat = values.reshape(len(values), -1)
        means = np.array([np.bincount(self.cell, weight * column) for column in flat.T]).T / total[:, None]
        return values - means[self.cell].reshape(values.shape)


@dataclass(frozen=True, eq=False)
class Bowl:
    """`point` (size,) holds mu (k, 3), log a (k), kappa (k), R's off-diagonal (k·(k-1)) and (g, h), for `axes` = k."""

    axes: int
    point: Array

    @property
    def centre(self) -> Array:
        """mu, (k, 3): rows are what is tuned, columns the level, the power of x and the power of D."""
        return self.point[: 3 * self.axes].reshape(self.axes, 3)

    @property
    def mixing(self) -> Array:
        """R, (k, k)."""
        rows = np.eye(self.axes)
        rows[~np.eye(self.axes, dtype=bool)] = self.point[5 * self.axes : -2]
        return rows

    def excess(self, z: Array, design: Array) -> Array:
        """Q, (n,): log of loss over the least loss, at `z` (n, k) where the cell's design is (n, 3)."""
        k = self.axes
        p = (z - design @ self.centre.T) @ self.mixing.T
        curve, _, _ = _linex(self.point[4 * k : 5 * k], p)
        return np.asarray(np.exp(design[:, 1:] @ self.point[-2:]) * (curve @ np.exp(self.point[3 * k : 4 * k])))

    def slopes(self, z: Array, design: Array) -> tuple[Array, Array]:
        """Q (n,) and its derivatives (n, size) by the point."""
        k, away, mixing = self.axes, z - design @ self.centre.T, self.mixing
        curve, by_p, by_kappa = _linex(self.point[4 * k : 5 * k], away @ mixing.T)
        height = np.exp(design[:, 1:] @ self.point[-2:])[:, None] * np.exp(self.point[3 * k : 4 * k])
        q = (height * curve).sum(axis=1)
        steep = height * by_p
        parts = [
            -((steep @ mixing)[:, :, None] * design[:, None, :]).reshape(len(z), 3 * k),
            height * curve,
            height * by_kappa,
            (steep[:, :, None] * away[:, None, :])[:, ~np.eye(k, dtype=bool)],
            q[:, None] * design[:, 1:],
        ]
        return q, np.concatenate(parts, axis=1)


@dataclass(frozen=True, eq=False)
class Prior:
    """A normal prior on the point of a bowl: `mean` and `sd`, each (size,)."""

    mean: Array
    sd: Array


def near_weight(excess: Array, near: float = NEAR) -> Array:
    """How much a run counts, by its `excess` log loss over its cell's best run."""
    return np.asarray(1 / (1 + (excess / near) ** 2))


def fit_bowl(runs: Cells, prior: Prior) -> tuple[Bowl, float]:
    """The bowl of greatest posterior and the standard deviation of log loss near its bottom.

    The noise is the median absolute residual, so that runs and prior are weighed as the runs themselves scatter.
    """
    bowl, sd = Bowl(runs.z.shape[1], prior.mean), 1e-3
    for _ in range(ROUNDS):
        bowl = refit_bowl(runs, prior, bowl, sd)
        found = _scatter(runs, bowl)
        if abs(np.log(found / sd)) < SETTLED:
            break
        sd = found
    return bowl, sd


def _scatter(runs: Cells, bowl: Bowl) -> float:
    """The weighted median absolute residual, as a standard deviation, with a degree of freedom for each coefficient."""
    residual = runs.less_mean(runs.y - bowl.excess(runs.z, runs.design), runs.weight) * np.sqrt(runs.weight)
    order = np.argsort(np.abs(residual))
    middle = np.searchsorted(np.cumsum(runs.weight[order]), runs.weight.sum() / 2)
    spent = len(np.unique(runs.cell)) + 3 * bowl.axes
    free = max(1.0, len(runs.y) - spent) / len(runs.y)
    return max(FEWEST_LEFT, MAD * float(np.abs(residual)[order][middle]) / np.sqrt(free))


def refit_bowl(runs: Cells, prior: Prior, bowl: Bowl, sd: float, enough: float = 1e-6) -> Bowl:
    """The bowl of greatest posterior at noise `sd`, from `bowl` on.

    Huber's loss by reweighted Levenberg-Marquardt steps, each cell's level solved exactly at every step, until a step
    gains less than `enough` in units of -2 log posterior.
    """
    damping = 1e-3
    for _ in range(STEPS):
        q, slopes = bowl.slopes(runs.z, runs.design)
        residual = runs.less_mean(runs.y - q, runs.weight)
        size = np.abs(residual) * np.sqrt(runs.weight) / sd
        weight = runs.weight / np.maximum(1.0, size / BEND) / sd**2
        residual = runs.less_mean(runs.y - q, weight)
        slopes = runs.less_mean(slopes, weight)
        off = bowl.point - prior.mean
        matrix = slopes.T @ (weight[:, None] * slopes) + np.diag(prior.sd**-2)
        gradient = slopes.T @ (weight * residual) - off / prior.sd**2
        cost = float((weight * residual**2).sum() + ((off / prior.sd) ** 2).sum())
        while damping < 1e9:
            step = np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), gradient)
            moved = Bowl(bowl.axes, bowl.point + step)
            fresh = runs.less_mean(runs.y - moved.excess(runs.z, runs.design), weight)
            lower = float((weight * fresh**2).sum() + (((moved.point - prior.mean) / prior.sd) ** 2).sum())
            if lower <= cost:
                break
            damping *= 5
        else:
            return bowl
        bowl, damping = moved, damping * 0.1 + 1e-12
        if cost - lower <= enough:
            return bowl
    return bowl


def _linex(kappa: Array, p: Array) -> tuple[Array, Array, Array]:
    """linex(kappa, p) and its derivatives by p and by kappa; p is (n, k), kappa (k,)."""
    w = np.clip(kappa * p, -FARTHEST, FARTHEST)
    small = np.abs(w) < SERIES
    v = np.where(small, 1.0, w)
    grown = np.expm1(v)
    by_p = grown / v
    curve = (by_p - 1) / v
    by_kappa = (by_p - 2 * curve) / v
    w = w[small]
    by_p[small] = 1 + w * (1 / 2 + w * (1 / 6 + w * (1 / 24 + w / 120)))
    curve[small] = 1 / 2 + w * (1 / 6 + w * (1 / 24 + w / 120))
    by_kappa[small] = 1 / 6 + w * (1 / 12 + w * (1 / 40 + w / 180))
    square = p * p
    return square * curve, p * by_p, square * p * by_kappa
