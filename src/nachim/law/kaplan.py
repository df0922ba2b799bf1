"""Kaplan's law: no floor, and data that counts by its inverse inside an outer power."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from nachim.law.coupled import Coupled
from nachim.law.forms import Array, Expansion, Law, Scale, Theta, Units

_COUPLED = Coupled()


class Kaplan(Law):
    """L = ((N_c/x)^(alpha_N/alpha_D) + D_c/D)^alpha_D (arXiv 2001.08361 eq. 1.5; there x counts no embeddings).

    It is the coupled law with E = 0, beta = 1 and k = alpha_D; a point holds that law's log A, log B, alpha and log k.
    """

    name: ClassVar[str] = "kaplan"
    formula: ClassVar[str] = "((N_c/x)^(alpha_N/alpha_D) + D_c/D)^alpha_D"
    source: ClassVar[str] = "arXiv 2001.08361 eq. 1.5"
    coefficient_names: ClassVar[tuple[str, ...]] = ("N_c", "D_c", "alpha_N", "alpha_D")
    low: ClassVar[Array] = np.array([-80.0, -80.0, 1e-3, np.log(1e-3)])
    high: ClassVar[Array] = np.array([40.0, 40.0, 50.0, np.log(5.0)])
    likely: ClassVar[tuple[Array, Array] | None] = (
        np.array([-3.0, -3.0, 0.2, np.log(0.04)]),
        np.array([0.0, 0.0, 3.0, np.log(0.9)]),
    )

    def value(self, z: Array, *logs: Array) -> Array:
        return _COUPLED.value(_whole(z), *logs)

    def expand(self, z: Array, *logs: Array) -> Expansion:
        value, slope, curvature = _COUPLED.expand(_whole(z), *logs)
        assert curvature is not None  # the coupled law has it
        rows = np.array([1, 2, 3, 5])
        return value, slope[..., rows, :], lambda c: curvature(c)[..., rows[:, None], rows]

    def coefficients(self, z: Array, units: Units) -> dict[str, Array]:
        theta = _COUPLED.coefficients(_whole(z), units)
        ratio, outer = theta["alpha"], theta["k"]
        return {"N_c": theta["A"] ** (1 / ratio), "D_c": theta["B"], "alpha_N": ratio * outer, "alpha_D": outer}

    def loss(self, theta: Theta, *columns: Array) -> Array:
        x, tokens = columns
        outer = np.asarray(theta["alpha_D"])
        inner = (theta["N_c"] / x) ** (theta["alpha_N"] / outer) + theta["D_c"] / tokens
        return np.asarray(inner**outer)

    def exponents(
        self, theta: Theta, flops: float = 1e21, scale: Scale = "params", **others: float
    ) -> tuple[Array, Array]:
        """Of runs that all train to the end of D: alpha_D/(alpha_N+alpha_D) and the rest. The paper's 0.73 is that of
        runs stopped early at the critical batch size instead."""
        return _COUPLED.exponents(_as_coupled(theta))

    def allocation(self, theta: Theta, flops: Array | float, scale: Scale, **others: float) -> tuple[Array, Array]:
        """Scale and tokens of least loss at compute `flops`, as for the coupled law."""
        return _COUPLED.allocation(_as_coupled(theta), flops, scale)


def _whole(z: Array) -> Array:
    zero = np.zeros_like(z[..., :1])
    return np.concatenate([zero, z[..., :3], zero + 1, z[..., 3:]], axis=-1)


def _as_coupled(theta: Theta) -> Theta:
    ratio = np.asarray(theta["alpha_N"]) / theta["alpha_D"]
    return {"A": np.asarray(theta["N_c"]) ** ratio, "B": theta["D_c"], "alpha": ratio, "beta": np.ones_like(ratio)}
