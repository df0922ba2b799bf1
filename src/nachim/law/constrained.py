"""Data that repeats, fitted: what seen tokens and spare parameters are worth (`law.repeat` has the known constant)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from nachim.law.forms import Array, Sample, Theta, distinct
from nachim.law.powers import Powers, Term
from nachim.law.repeat import worth

FARTHEST = 30.0
"""Largest log of N over the N that the unique tokens call for: only a start far from any fit comes near it."""


class Constrained(Powers):
    """L = E + A·N'^-alpha + B·D'^-beta (arXiv 2305.16264 eqs. 5 and 6).

    D' = U·(1 + R*_D·(1 - e^(-R_D/R*_D))) for U unique tokens seen 1 + R_D times, and N' likewise for x = U_N·(1 + R_N),
    where U_N is the scale for which U tokens are compute-optimal by the law itself, or x where that is less.
    `unique_tokens` above `tokens` count as `tokens`. The paper ties alpha to beta; here the runs decide.
    """

    name: ClassVar[str] = "constrained"
    formula: ClassVar[str] = "E + A·N'^-alpha + B·D'^-beta, D' = U·(1 + rd_star·(1 - e^(-R/rd_star))), R = D/U - 1"
    source: ClassVar[str] = "arXiv 2305.16264 eqs. 5 and 6"
    inputs: ClassVar[tuple[str, ...]] = ("x", "tokens", "unique_tokens")
    unit_of: ClassVar[Mapping[str, float | str]] = {"unique_tokens": "tokens"}
    levels: ClassVar[Mapping[str, int]] = {"unique_tokens": 1}
    terms: ClassVar[tuple[Term, ...]] = (Term("A", alpha="x"), Term("B", beta="tokens"))
    shapes: ClassVar[tuple[str, ...]] = ("rd_star", "rn_star")
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"rd_star": (0.1, 1e4), "rn_star": (0.1, 1e4)}

    def effective(self, z: Array, *logs: Array) -> tuple[tuple[Array, ...], Array | None]:
        log_x, log_tokens, log_unique = logs
        fresh = np.minimum(log_unique, log_tokens)
        bends = np.zeros((3, *z.shape, len(log_x)))
        seen, _, bends[1, ..., 5, :] = _worth(log_tokens - fresh, z[..., 5, None])
        called_for, slope = _called_for(z, fresh)
        slope = np.where((called_for > log_x - FARTHEST)[..., None, :], slope, 0.0)
        called_for = np.maximum(called_for, log_x - FARTHEST)
        spare = np.maximum(log_x - called_for, 0.0)
        used, gain, bends[0, ..., 6, :] = _worth(spare, z[..., 6, None])
        bends[0, ..., 1:5, :] = np.where(spare > 0, 1 - gain, 0.0)[..., None, :] * slope
        return (log_x - spare + used, fresh + seen, log_unique), bends

    def loss(self, theta: Theta, *columns: Array) -> Array:
        x, tokens, unique = columns
        fresh = np.minimum(unique, tokens)
        alpha, beta = np.asarray(theta["alpha"]), np.asarray(theta["beta"])
        g = (alpha * theta["A"] / (beta * np.asarray(theta["B"]))) ** (1 / (alpha + beta))
        needed = np.minimum(g * (g * fresh) ** (beta / alpha), x)
        tokens = fresh * worth(tokens / fresh - 1, np.asarray(theta["rd_star"]), np.expm1)
        x = needed * worth(x / needed - 1, np.asarray(theta["rn_star"]), np.expm1)
        return super().loss(theta, x, tokens)

    def shortfall(self, sample: Sample, use: npt.NDArray[np.bool_]) -> str | None:
        _, log_tokens, log_unique = (column[use] for column in sample.inputs)
        passes = log_tokens - log_unique
        if (found := distinct(passes[passes > 0.01])) < 3:
            return (
                f"the runs hold {found} distinct numbers of passes over their unique tokens: runs at 3 or more, up to "
                f"10 passes or beyond, are needed for the {self.name} law (chinchilla fits runs that repeat nothing)"
            )
        return super().shortfall(sample, use)


def _worth(log_ratio: Array, log_star: Array) -> tuple[Array, Array, Array]:
    """Log of what e^`log_ratio` passes are worth, its slope by log_ratio, and by `log_star`, the log of R*."""
    repetitions, star = np.expm1(log_ratio), np.exp(log_star)
    value, fade = worth(repetitions, star, np.expm1), np.exp(-repetitions / star)
    by_star = (value - 1 - repetitions * fade) / value
    return np.log(value), (repetitions + 1) * fade / value, by_star


def _called_for(z: Array, log_unique: Array) -> tuple[Array, Array]:
    """Log of the scale for which `log_unique` tokens are compute-optimal, (..., n), and its slope by log A, log B,
    alpha and beta, (..., 4, n).

    At the optimum alpha·A·N^-alpha = beta·B·D^-beta (arXiv 2203.15556 eq. 4), whence N = G·(G·D)^(beta/alpha).
    """
    _, log_a, log_b, alpha, beta = np.moveaxis(z[..., :5, None], -2, 0)
    # alpha·log N = log(alpha·A) - log(beta·B) + beta·log D
    log_scale = (np.log(alpha) + log_a - np.log(beta) - log_b + beta * log_unique) / alpha
    rows = (1 / alpha, -1 / alpha, (1 / alpha - log_scale) / alpha, (log_unique - 1 / beta) / alpha)
    return log_scale, np.stack(np.broadcast_arrays(*rows), axis=-2)
