"""The laws: how loss falls with model scale `x` and training tokens `D`, each one small frozen class.

A law works on normalised logarithms, so that its fit is well conditioned: the scale, the tokens and the loss
are each divided by their geometric mean over the observations (`Units`), and a law's *point* `z` holds
E, log A, log B, alpha, beta (and log k). Adding a law is adding one class here and naming it in `LAWS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from nachim.spec.error import UserError, nearest

Array = npt.NDArray[np.float64]
Scale = Literal["params", "flops_per_token"]
Expansion = tuple[Array, Array, Callable[[Array], Array]]

FLOPS_PER_UNIT: dict[Scale, float] = {"params": 6.0, "flops_per_token": 1.0}
"""Training FLOPs per token and unit of scale: C = 6·N·D (arXiv 2001.08361) or C = M·D (arXiv 2401.02954)."""


@dataclass(frozen=True)
class Units:
    """Geometric means of scale, tokens and loss: what a law's point is expressed in."""

    x: float
    tokens: float
    loss: float


class Law(ABC):
    """A loss surface over (scale, tokens), with the compute-optimal allocation that it implies."""

    name: ClassVar[str]
    formula: ClassVar[str]
    coefficient_names: ClassVar[tuple[str, ...]]
    low: ClassVar[Array]
    high: ClassVar[Array]
    outer_powers: ClassVar[tuple[float, ...]]

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return len(self.coefficient_names)

    @abstractmethod
    def value(self, z: Array, log_x: Array, log_tokens: Array) -> Array:
        """Log of the normalised loss, shape (..., n), at points `z` (..., size) and inputs of shape (n,)."""

    @abstractmethod
    def expand(self, z: Array, log_x: Array, log_tokens: Array) -> Expansion:
        """Value (..., n), slope (..., size, n), and a function from weights c (..., n) to the sum over n of
        c times the second derivative, (..., size, size)."""

    @abstractmethod
    def coefficients(self, z: Array, units: Units) -> dict[str, Array]:
        """Coefficients in the original units, each of shape (...), for points `z` of shape (..., size)."""

    @abstractmethod
    def point(self, powers: Array, log_a: Array, log_b: Array, floor: Array) -> Array:
        """Points (m, size) from `powers` (m, 3) = alpha, beta, k; log A, log B and E = `floor`, each (m,)."""

    def predict(self, theta: Mapping[str, float | Array], x: Array | float, tokens: Array | float) -> Array:
        """Loss at scale `x` and `tokens` for coefficients `theta` in original units."""
        reducible = theta["A"] * np.asarray(x, float) ** -np.asarray(theta["alpha"])
        reducible = reducible + theta["B"] * np.asarray(tokens, float) ** -np.asarray(theta["beta"])
        return np.asarray(theta["E"] + reducible ** theta.get("k", 1.0))

    def exponents(self, theta: Mapping[str, float | Array]) -> tuple[Array, Array]:
        """How the optimal scale and tokens grow with compute: beta/(alpha+beta), alpha/(alpha+beta).

        arXiv 2203.15556 eq. 4. An outer power k does not move the optimum, being monotone.
        """
        alpha, beta = np.asarray(theta["alpha"]), np.asarray(theta["beta"])
        return beta / (alpha + beta), alpha / (alpha + beta)

    def allocation(self, theta: Mapping[str, float | Array], flops: Array | float, scale: Scale) -> tuple[Array, Array]:
        """Scale and tokens that minimise loss at compute `flops` = C (arXiv 2203.15556 eq. 4).

        With K = C/6 for `params` and K = C for `flops_per_token`, x = G·K^(beta/(alpha+beta)) and D = K/x,
        where G = (alpha·A / (beta·B))^(1/(alpha+beta)).
        """
        alpha, beta = np.asarray(theta["alpha"]), np.asarray(theta["beta"])
        product = np.asarray(flops, float) / FLOPS_PER_UNIT[scale]
        log_g = np.log(alpha) + np.log(theta["A"]) - np.log(beta) - np.log(theta["B"])
        x = np.exp((log_g + beta * np.log(product)) / (alpha + beta))
        return x, product / x


@dataclass(frozen=True)
class Coupled(Law):
    """L = E + (A·x^-alpha + B·D^-beta)^k (arXiv 2608.07222, "Skaling"); k = 1 is Chinchilla's law."""

    name: ClassVar[str] = "coupled"
    formula: ClassVar[str] = "E + (A·x^-alpha + B·D^-beta)^k"
    coefficient_names: ClassVar[tuple[str, ...]] = ("E", "A", "B", "alpha", "beta", "k")
    low: ClassVar[Array] = np.array([0.0, -80.0, -80.0, 1e-3, 1e-3, np.log(0.05)])
    high: ClassVar[Array] = np.array([3.0, 40.0, 40.0, 8.0, 8.0, np.log(5.0)])
    outer_powers: ClassVar[tuple[float, ...]] = (0.2, 0.45, 1.0)

    def value(self, z: Array, log_x: Array, log_tokens: Array) -> Array:
        z = z[..., None]
        by_x, by_tokens = z[..., 1, :] - z[..., 3, :] * log_x, z[..., 2, :] - z[..., 4, :] * log_tokens
        return np.log(z[..., 0, :] + np.exp(np.exp(z[..., 5, :]) * _log_sum(by_x, by_tokens)))

    def expand(self, z: Array, log_x: Array, log_tokens: Array) -> Expansion:
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

    def point(self, powers: Array, log_a: Array, log_b: Array, floor: Array) -> Array:
        return np.stack([floor, log_a, log_b, powers[:, 0], powers[:, 1], np.log(powers[:, 2])], axis=-1)


@dataclass(frozen=True)
class Chinchilla(Law):
    """L = E + A·x^-alpha + B·D^-beta (arXiv 2203.15556 eq. 2)."""

    name: ClassVar[str] = "chinchilla"
    formula: ClassVar[str] = "E + A·x^-alpha + B·D^-beta"
    coefficient_names: ClassVar[tuple[str, ...]] = ("E", "A", "B", "alpha", "beta")
    low: ClassVar[Array] = Coupled.low[:5]
    high: ClassVar[Array] = Coupled.high[:5]
    outer_powers: ClassVar[tuple[float, ...]] = (1.0,)

    def value(self, z: Array, log_x: Array, log_tokens: Array) -> Array:
        return _COUPLED.value(_with_k_one(z), log_x, log_tokens)

    def expand(self, z: Array, log_x: Array, log_tokens: Array) -> Expansion:
        value, slope, curvature = _COUPLED.expand(_with_k_one(z), log_x, log_tokens)
        return value, slope[..., :5, :], lambda c: curvature(c)[..., :5, :5]

    def coefficients(self, z: Array, units: Units) -> dict[str, Array]:
        theta = _COUPLED.coefficients(_with_k_one(z), units)
        return {name: theta[name] for name in self.coefficient_names}

    def point(self, powers: Array, log_a: Array, log_b: Array, floor: Array) -> Array:
        return _COUPLED.point(powers, log_a, log_b, floor)[:, :5]


def _with_k_one(z: Array) -> Array:
    return np.concatenate([z, np.zeros_like(z[..., :1])], axis=-1)


def _log_sum(a: Array, b: Array) -> Array:
    """log(exp a + exp b); several times faster than numpy.logaddexp, which is not vectorised."""
    return np.maximum(a, b) + np.log(1 + np.exp(-np.abs(a - b)))


_COUPLED = Coupled()
LAWS: dict[str, Law] = {"chinchilla": Chinchilla(), "coupled": _COUPLED}
"""Every law by name, from the fewest coefficients to the most."""


def law_named(name: str) -> Law:
    """The law called `name`. Raises UserError with the nearest name when there is none."""
    if name not in LAWS:
        raise UserError(f"no law is called {name!r}{nearest(name, LAWS)}")
    return LAWS[name]
