"""What the runs so far leave open: the covariance of log loss, anywhere, as each law sees it and over all laws.

A law at its fit, linearised, is a regression on its Jacobian J. What it cannot follow is taken for a smooth random
surface g over (log x, log D): an observation is J·dθ + g + noise, and the posterior that of universal kriging (Kennedy
and O'Hagan 2001 section 2, with a squared-exponential g). Without g a design would repeat the same few runs for ever,
as the optimum designs of a law that is exactly right do; with it a second run at the same place teaches little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from nachim.law.forms import Array, Law
from nachim.law.interval import MAD

REACH = math.log(10)
"""Scale in log x and in log D over which a law's own misfit is alike: one decade."""
LAW_ERROR, LAW_ERROR_SPREAD = 0.005, 3.0
"""What a law's misfit is taken for before the runs speak, and the factor either way that is one standard deviation: the
coupled law, fitted to the cheaper budgets of 17 published tables, misses the dearest by 0.5 % of loss at the median."""
RATIOS = np.geomspace(0.01, 1e4, 25)
TURNS = np.geomspace(0.25, 4.0, 17)
"""Variance of the misfit over that of run noise, and run noise over its most likely value at such a ratio: the grid on
which the two are weighed."""
LEAST_NOISE = 1e-5
"""Run noise below which the arithmetic ends (0.001 % of loss; no training run repeats so well)."""
LARGEST = 400
"""Runs from which misfit and noise are told apart; larger tables are thinned evenly."""
CLIP = 3.0
"""Residuals count up to so many robust standard deviations: an outlier is no misfit of the law."""


@dataclass(frozen=True, eq=False)
class View:
    """What one law, at one fit, says: about `inputs` (each (m,), normalised logs) a mean and a covariance.

    `past` (n, m) and `slopes` (p, m) are its factors: cov = misfit²·κ - pastᵀ·past + slopesᵀ·slopes; `share` is the
    weight of the view among all, and `noise` the standard deviation of a run about it.
    """

    inputs: tuple[Array, ...]
    mean: Array
    past: Array
    slopes: Array
    misfit: float
    noise: float
    share: float

    @property
    def covariance(self) -> Array:
        """Covariance of the sites, (m, m)."""
        prior = self.misfit**2 * alike(self.inputs, self.inputs)
        return prior - self.past.T @ self.past + self.slopes.T @ self.slopes


def alike(one: tuple[Array, ...], other: tuple[Array, ...]) -> Array:
    """Correlation of a law's misfit at sites `one` and `other`, (len one, len other)."""
    square = sum((a[:, None] - b) ** 2 for a, b in zip(one, other, strict=True))
    return np.exp(-0.5 * square / REACH**2)


def view(
    law: Law, point: Array, seen: tuple[Array, ...], y: Array, weight: Array, sites: tuple[Array, ...], share: float
) -> View:
    """How `law` at `point`, fitted to log losses `y` (n,) at `seen` with `weight`, sees `sites` (each (m,)).

    Runs of weight 0 are left out; a weight of 2 counts as two runs.
    """
    use = weight > 0
    seen, y, weight = tuple(column[use] for column in seen), y[use], weight[use]
    value, slope = law.expand(point, *seen)[:2]
    root = np.sqrt(weight / weight.mean())
    near = alike(seen, seen)
    misfit, noise = split(slope.T, near, clipped(y - value), root)
    mean, ahead = law.expand(point, *sites)[:2]
    factors = kriging(slope.T, ahead.T, near, alike(seen, sites), misfit, noise / root, (law.high - law.low) / 4)
    return View(sites, mean, *factors, misfit, noise, share)


def kriging(
    seen: Array, sites: Array, near: Array, across: Array, misfit: float, noise: Array, wide: Array
) -> tuple[Array, Array]:
    """Factors (past (n, m), slopes (p, m)) of the posterior, see `View`, by universal kriging.

    `seen` (n, p) and `sites` (m, p) are Jacobians, `near` (n, n) and `across` (n, m) correlations of the misfit,
    `noise` (n,) standard deviations, and `wide` (p,) those of the prior of each coefficient.
    """
    lower = np.linalg.cholesky(misfit**2 * near + np.diag(noise**2))
    past = solve_triangular(lower, misfit**2 * across, lower=True)
    known = solve_triangular(lower, seen, lower=True)
    triangle = np.linalg.qr(np.vstack([known * wide, np.eye(len(wide))]), mode="r")
    unknown = (sites - past.T @ known) * wide
    return past, solve_triangular(triangle.T, unknown.T, lower=True)


def split(jacobian: Array, near: Array, residual: Array, root: Array) -> tuple[float, float]:
    """Standard deviations (misfit, noise) that share the residuals (n,) of a fit between them.

    Restricted likelihood (Patterson and Thompson 1971): what the coefficients can take is projected out. The two are
    geometric means over a grid, weighed by likelihood and by the prior of `LAW_ERROR`: cheap runs that lie close
    together cannot show how far a law bends from the truth over a decade.
    """
    n, p = jacobian.shape
    if n <= p:
        return LAW_ERROR, LAW_ERROR
    thin = slice(None, None, math.ceil(n / LARGEST))
    jacobian, near, residual, root = jacobian[thin], near[thin, thin], residual[thin], root[thin]
    free = np.linalg.qr(jacobian * root[:, None], mode="complete")[0][:, p:]
    values, vectors = np.linalg.eigh(free.T @ (root[:, None] * near * root) @ free)
    square = ((free @ vectors).T @ (residual * root)) ** 2
    inflation = 1 + RATIOS[:, None] * np.maximum(values, 0)
    total = (square / inflation).sum(axis=1)[:, None]
    noise = np.maximum(np.sqrt(total / len(values)) * TURNS, LEAST_NOISE)
    misfit = noise * np.sqrt(RATIOS)[:, None]
    log_belief = -0.5 * (np.log(inflation).sum(axis=1)[:, None] + total / noise**2) - len(values) * np.log(noise)
    log_belief -= 0.5 * (np.log(misfit / LAW_ERROR) / math.log(LAW_ERROR_SPREAD)) ** 2
    belief = np.exp(log_belief - log_belief.max())
    belief /= belief.sum()
    return math.exp(float((belief * np.log(misfit)).sum())), math.exp(float((belief * np.log(noise)).sum()))


def clipped(residual: Array) -> Array:
    """Residuals held within `CLIP` robust standard deviations (MAD times their median size)."""
    most = CLIP * max(MAD * float(np.median(np.abs(residual))), LEAST_NOISE)
    return np.clip(residual, -most, most)
