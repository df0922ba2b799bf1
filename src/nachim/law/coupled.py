"""Chinchilla's law and the coupled law that contains it: the surfaces over scale and tokens for general use."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from nachim.law.forms import (
    DELTA,
    FLOPS_PER_UNIT,
    Array,
    Expansion,
    Law,
    Prior,
    Sample,
    Scale,
    Theta,
    Units,
    best_spread,
)

EFFECTIVE_EXPONENTS = (0.08, 0.18, 0.32, 0.6)
FLOORS = (0.02, 0.4, 0.7, 0.9)
EFFICIENT = 1.345
"""Huber's delta over the noise: squared loss for normal noise but for 5 % of the runs' worth (Huber 1964)."""
KNOWN = np.array([[0.55, 0.0, 0.0, 0.75, 0.4, 0.0], [0.2, np.inf, np.inf, 0.25, 0.15, 0.3]])
"""Means and standard deviations of E over the mean loss, log A, log B, alpha, beta and log k. Published fits over
parameters have alpha 0.34 to 0.35 and beta 0.28 to 0.37 (arXiv 2203.15556, 2305.16264, 2404.10102); over FLOPs a token,
which count the attention of small models, alpha is steeper. Both centres were chosen on the ladders of
`ideas/late_runs.md`."""


@dataclass(frozen=True)
class Additive(Law):
    """E + (A·x^-alpha + B·D^-beta)^k: what the two laws share, with their closed-form optimum."""

    outer_powers: ClassVar[tuple[float, ...]]
    prior: Prior | None = None
    delta: float = DELTA

    def informed(self, noise: float) -> Law:
        mean, sd = KNOWN[:, : self.size]
        return replace(self, prior=Prior(mean, sd, noise**2), delta=max(DELTA, EFFICIENT * noise))

    def point(self, powers: Array, log_a: Array, log_b: Array, floor: Array) -> Array:
        """Points (m, size) from `powers` (m, 3) = alpha, beta, k; log A, log B and E = `floor`, each (m,)."""
        whole = np.stack([floor, log_a, log_b, powers[:, 0], powers[:, 1], np.log(powers[:, 2])], axis=-1)
        return whole[:, : self.size]

    def loss(self, theta: Theta, *columns: Array) -> Array:
        x, tokens = columns
        reducible = theta["A"] * x ** -np.asarray(theta["alpha"]) + theta["B"] * tokens ** -np.asarray(theta["beta"])
        return np.asarray(theta["E"] + reducible ** theta.get("k", 1.0))

    def exponents(
        self, theta: Theta, flops: float = 1e21, scale: Scale = "params", **others: float
    ) -> tuple[Array, Array]:
        """How the optimal scale and tokens grow with compute: beta/(alpha+beta), alpha/(alpha+beta), at any compute.

        arXiv 2203.15556 eq. 4. An outer power k does not move the optimum, being monotone.
        """
        alpha, beta = np.asarray(theta["alpha"]), np.asarray(theta["beta"])
        return beta / (alpha + beta), alpha / (alpha + beta)

    def allocation(self, theta: Theta, flops: Array | float, scale: Scale, **others: float) -> tuple[Array, Array]:
        """Scale and tokens that minimise loss at compute `flops` = C (arXiv 2203.15556 eq. 4).

        With K = C/6 for `params` and K = C for `flops_per_token`, x = G·K^(beta/(alpha+beta)) and D = K/x,
        where G = (alpha·A / (beta·B))^(1/(alpha+beta)).
        """
        alpha, beta = np.asarray(theta["alpha"]), np.asarray(theta["beta"])
        product = np.asarray(flops, float) / FLOPS_PER_UNIT[scale]
        log_g = np.log(alpha) + np.log(theta["A"]) - np.log(beta) - np.log(theta["B"])
        x = np.exp((log_g + beta * np.log(product)) / (alpha + beta))
        return x, product / x

    def starts(self, sample: Sample, weight: Array, count: int) -> Array:
        """Starts (count, size) by variable projection: a grid of exponents, k and E; A and B by least squares.

        Given alpha, beta, k and E, the law is linear in A and B for the target (L - E)^(1/k) (arXiv 2603.22339
        for k = 1); each row is weighted by the slope of that transform, so the residuals stay relative ones.
        The grid is ranked, and ranks are taken with growing gaps: the best ones, and some from far away.
        """
        use = weight > 0
        loss, w = np.exp(sample.log_loss[use]), weight[use]
        grid = itertools.product(EFFECTIVE_EXPONENTS, EFFECTIVE_EXPONENTS, self.outer_powers, FLOORS)
        alpha, beta, k, floor = np.array(list(grid)).T[..., None]
        alpha, beta, floor = alpha / k, beta / k, floor * loss.min()
        trust = w**0.5 * k * (loss - floor) ** (1 - 1 / k) / loss
        by_x = trust * np.exp(-alpha * sample.log_x[use])
        by_tokens = trust * np.exp(-beta * sample.log_tokens[use])
        wanted = trust * (loss - floor) ** (1 / k)
        a, b = _two_positive(by_x, by_tokens, wanted)
        powers = np.concatenate([alpha, beta, k], axis=1)
        points = self.point(powers, np.log(a), np.log(b), floor[:, 0])
        return best_spread(self, sample, weight, points, count)


@dataclass(frozen=True)
class Coupled(Additive):
    """L = E + (A·x^-alpha + B·D^-beta)^k (arXiv 2608.07222, "Skaling"); k = 1 is Chinchilla's law."""

    name: ClassVar[str] = "coupled"
    formula: ClassVar[str] = "E + (A·x^-alpha + B·D^-beta)^k"
    source: ClassVar[str] = "arXiv 2608.07222"
    coefficient_names: ClassVar[tuple[str, ...]] = ("E", "A", "B", "alpha", "beta", "k")
    low: ClassVar[Array] = np.array([0.0, -80.0, -80.0, 1e-3, 1e-3, np.log(0.05)])
    high: ClassVar[Array] = np.array([3.0, 40.0, 40.0, 8.0, 8.0, np.log(5.0)])
    outer_powers: ClassVar[tuple[float, ...]] = (0.2, 0.45, 1.0)

    def value(self, z: Array, *logs: Array) -> Array:
        log_x, log_tokens = logs
        z = z[..., None]
        by_x, by_tokens = z[..., 1, :] - z[..., 3, :] * log_x, z[..., 2, :] - z[..., 4, :] * log_tokens
        return np.log(z[..., 0, :] + np.exp(np.exp(z[..., 5, :]) * _log_sum(by_x, by_tokens)))

    def expand(self, z: Array, *logs: Array) -> Expansion:
        log_x, log_tokens = logs
        z = z[..., None]
        k = np.exp(z[..., 5, :])
        by_x, by_tokens = z[..., 1, :] - z[..., 3, :] * log_x, z[..., 2, :] - z[..., 4, :] * log_tokens
        inner = _log_sum(by_x, by_tokens)
        share = np.exp(by_x - inner)
        reducible = np.exp(k * inner)
        loss = z[..., 0, :] + reducible
        part, in_x, in_tokens = reducible / loss, k * share, k * (1 - share)
        slope = np.empty((*inner.shape[:-1], 6, inner.shape[-1]))
        slope[..., 0, :] = 1 / loss
        for row, column in enumerate((in_x, in_tokens, -in_x * log_x, -in_tokens * log_tokens, k * inner), 1):
            slope[..., row, :] = part * column

        def curvature(c: Array) -> Array:
            shrink = c / part
            bend = -(slope * c[..., None, :]) @ slope.swapaxes(-1, -2)
            body = slope[..., 1:, :]
            bend[..., 1:, 1:] += (body * shrink[..., None, :]) @ body.swapaxes(-1, -2)
            turn = np.stack(np.broadcast_arrays(1.0, -1.0, -log_x, log_tokens))
            weight = c * part * in_x * (1 - share)
            bend[..., 1:5, 1:5] += (turn * weight[..., None, :]) @ turn.T
            cross = np.einsum("...pn,...n->...p", body, c)
            bend[..., 5, 1:] += cross
            bend[..., 1:5, 5] += cross[..., :4]
            return bend

        return np.log(loss), slope, curvature

    def coefficients(self, z: Array, units: Units) -> dict[str, Array]:
        alpha, beta, k = z[..., 3], z[..., 4], np.exp(z[..., 5])
        log_loss = np.log(units.loss)
        return {
            "E": z[..., 0] * units.loss,
            "A": np.exp(z[..., 1] + alpha * np.log(units.x) + log_loss / k),
            "B": np.exp(z[..., 2] + beta * np.log(units.tokens) + log_loss / k),
            "alpha": alpha,
            "beta": beta,
            "k": k,
        }


@dataclass(frozen=True)
class Chinchilla(Additive):
    """L = E + A·x^-alpha + B·D^-beta (arXiv 2203.15556 eq. 2)."""

    name: ClassVar[str] = "chinchilla"
    formula: ClassVar[str] = "E + A·x^-alpha + B·D^-beta"
    source: ClassVar[str] = "arXiv 2203.15556 eq. 2"
    coefficient_names: ClassVar[tuple[str, ...]] = ("E", "A", "B", "alpha", "beta")
    low: ClassVar[Array] = Coupled.low[:5]
    high: ClassVar[Array] = Coupled.high[:5]
    outer_powers: ClassVar[tuple[float, ...]] = (1.0,)

    def value(self, z: Array, *logs: Array) -> Array:
        return _COUPLED.value(_with_k_one(z), *logs)

    def expand(self, z: Array, *logs: Array) -> Expansion:
        value, slope, curvature = _COUPLED.expand(_with_k_one(z), *logs)
        assert curvature is not None
        return value, slope[..., :5, :], lambda c: curvature(c)[..., :5, :5]

    def coefficients(self, z: Array, units: Units) -> dict[str, Array]:
        theta = _COUPLED.coefficients(_with_k_one(z), units)
        return {name: theta[name] for name in self.coefficient_names}


def _with_k_one(z: Array) -> Array:
    return np.concatenate([z, np.zeros_like(z[..., :1])], axis=-1)


def _log_sum(a: Array, b: Array) -> Array:
    """log(exp a + exp b); several times faster than numpy.logaddexp, which is not vectorised."""
    return np.maximum(a, b) + np.log(1 + np.exp(-np.abs(a - b)))


def _two_positive(u: Array, v: Array, t: Array) -> tuple[Array, Array]:
    """Least squares t ≈ a·u + b·v along the last axis, with a and b at least a sliver above 0."""
    uu, vv, uv, ut, vt = ((p * q).sum(-1) for p, q in ((u, u), (v, v), (u, v), (u, t), (v, t)))
    determinant = np.maximum(uu * vv - uv**2, 1e-12 * uu * vv)
    a, b = (vv * ut - uv * vt) / determinant, (uu * vt - uv * ut) / determinant
    a, b = np.where(b <= 0, ut / uu, a), np.where(a <= 0, vt / vv, b)
    return np.maximum(a, 1e-6 * ut / uu), np.maximum(b, 1e-6 * vt / vv)


_COUPLED = Coupled()
