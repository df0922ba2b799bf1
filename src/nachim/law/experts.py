"""Mixtures of experts: how many experts (Clark), how fine (Krajewski), how few of them at once (Abnar)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from nachim.law.forms import Array, Expansion, Law, Theta, Units
from nachim.law.powers import Powers, Term

LN10 = float(np.log(10))


class Granularity(Powers):
    """L = c + (g·G^-gamma + a)·x^-alpha + b·D^-beta (arXiv 2402.07871 eq. 9), at one expansion rate.

    `granularity` G is d_ff of the dense layer over that of an expert; `x` counts all parameters but the embeddings.
    """

    name: ClassVar[str] = "granularity"
    formula: ClassVar[str] = "c + (g·G^-gamma + a)·x^-alpha + b·D^-beta"
    source: ClassVar[str] = "arXiv 2402.07871 eq. 9"
    floor: ClassVar[str] = "c"
    inputs: ClassVar[tuple[str, ...]] = ("x", "tokens", "granularity")
    terms: ClassVar[tuple[Term, ...]] = (
        Term("g", alpha="x", gamma="granularity"),
        Term("a", alpha="x"),
        Term("b", beta="tokens"),
    )


class Sparsity(Powers):
    """L = e + a·x^-alpha + b·D^-beta + c·s^-lambda + d·s^-delta·x^-gamma (arXiv 2501.12370 eq. 6).

    `active_share` s = 1 - S is the share of the experts that a token uses; `x` counts all parameters, not the active.
    The paper's own lambda is below 0.
    """

    name: ClassVar[str] = "sparsity"
    formula: ClassVar[str] = "e + a·x^-alpha + b·D^-beta + c·s^-lambda + d·s^-delta·x^-gamma"
    source: ClassVar[str] = "arXiv 2501.12370 eq. 6"
    floor: ClassVar[str] = "e"
    inputs: ClassVar[tuple[str, ...]] = ("x", "tokens", "active_share")
    terms: ClassVar[tuple[Term, ...]] = (
        Term("a", alpha="x"),
        Term("b", beta="tokens"),
        Term("c", **{"lambda": "active_share"}),
        Term("d", delta="active_share", gamma="x"),
    )
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"lambda": (-3.0, 3.0), "delta": (-3.0, 3.0)}


class Routing(Law):
    """log10 L = a·log10 x + b·log10 Ê + c·log10 x·log10 Ê + d at one token count (arXiv 2202.01169 eqs. 1 and 12).

    Ê saturates in the number of `experts`: 1/Ê = 1/(E - 1 + (1/E_start - 1/E_max)^-1) + 1/E_max, which is E_start for
    E = 1, a dense model. `x` is the scale of that dense model. A point holds the four coefficients for natural logs of
    the normalised x, log(E_start) and log(E_max / E_start).
    """

    name: ClassVar[str] = "routing"
    formula: ClassVar[str] = (
        "10^(a·log x + b·log Ê + c·log x·log Ê + d), 1/Ê = 1/(E-1+(1/E_start-1/E_max)^-1) + 1/E_max"
    )
    source: ClassVar[str] = "arXiv 2202.01169 eq. 1"
    coefficient_names: ClassVar[tuple[str, ...]] = ("a", "b", "c", "d", "E_start", "E_max")
    low: ClassVar[Array] = np.array([-2.0, -2.0, -0.5, -5.0, 0.0, 0.1])
    high: ClassVar[Array] = np.array([0.5, 0.5, 0.5, 5.0, np.log(50.0), np.log(1e5)])
    likely: ClassVar[tuple[Array, Array] | None] = (
        np.array([-0.3, -0.3, -0.03, -0.2, 0.0, 2.0]),
        np.array([-0.02, 0.0, 0.03, 0.5, 2.0, 8.0]),
    )
    inputs: ClassVar[tuple[str, ...]] = ("x", "experts")
    unit_of: ClassVar[Mapping[str, float | str]] = {"experts": 1.0}

    def value(self, z: Array, *logs: Array) -> Array:
        return self.expand(z, *logs)[0]

    def expand(self, z: Array, *logs: Array) -> Expansion:
        log_x, log_experts = logs
        a, b, c, d, log_start, log_ratio = np.moveaxis(z[..., None], -2, 0)
        experts, start, least = np.exp(log_experts), np.exp(log_start), np.exp(-log_ratio)
        dense = start / (1 - least)
        inner = experts - 1 + dense
        inverse = 1 / inner + least / start
        log_hat = -np.log(inverse)
        # d(inverse) by log E_start, then by log(E_max / E_start), which `dense` holds as well
        by_start = -dense / inner**2 - least / start
        by_ratio = dense * least / (1 - least) / inner**2 - least / start
        pull = b + c * log_x
        rows = (log_x, log_hat, log_x * log_hat, 1.0, -pull * by_start / inverse, -pull * by_ratio / inverse)
        slope = np.stack(np.broadcast_arrays(*rows), axis=-2)
        return a * log_x + b * log_hat + c * log_x * log_hat + d, slope, None

    def coefficients(self, z: Array, units: Units) -> dict[str, Array]:
        a, b, c, d, log_start, log_ratio = np.moveaxis(z, -1, 0)
        log_x = np.log(units.x)
        return {
            "a": a,
            "b": b - c * log_x,
            "c": c * LN10,
            "d": (d - a * log_x + np.log(units.loss)) / LN10,
            "E_start": np.exp(log_start),
            "E_max": np.exp(log_start + log_ratio),
        }

    def loss(self, theta: Theta, *columns: Array) -> Array:
        x, experts = columns
        start, most = np.asarray(theta["E_start"]), np.asarray(theta["E_max"])
        log_hat = -np.log10(1 / (experts - 1 + 1 / (1 / start - 1 / most)) + 1 / most)
        log_x = np.log10(x)
        power = theta["a"] * log_x + theta["b"] * log_hat + theta["c"] * log_x * log_hat + theta["d"]
        return np.asarray(10**power)
