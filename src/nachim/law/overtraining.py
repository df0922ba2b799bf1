"""Overtraining: one exponent for scale and data, so that runs of any tokens per parameter fall in parallel."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from nachim.law.forms import FLOPS_PER_UNIT, Array, Scale, Theta, Units
from nachim.law.powers import Powers, Term


class Overtraining(Powers):
    """L = E + (a·m^eta + b·m^-eta)·C^-eta, where m = D/x and C = 6·x·D (arXiv 2403.08540 eq. 4, x = N).

    It is Chinchilla's law with alpha = beta = 2·eta, A = a·6^-eta and B = b·6^-eta, and it is fitted as that.
    """

    name: ClassVar[str] = "overtraining"
    formula: ClassVar[str] = "E + (a·m^eta + b·m^-eta)·(6·x·D)^-eta, m = D/x"
    source: ClassVar[str] = "arXiv 2403.08540 eq. 4"
    coefficient_names: ClassVar[tuple[str, ...]] = ("E", "a", "b", "eta")
    terms: ClassVar[tuple[Term, ...]] = (Term("A", alpha="x"), Term("B", alpha="tokens"))

    def coefficients(self, z: Array, units: Units) -> dict[str, Array]:
        theta = super().coefficients(z, units)
        eta = theta["alpha"] / 2
        return {"E": theta["E"], "a": theta["A"] * 6**eta, "b": theta["B"] * 6**eta, "eta": eta}

    def loss(self, theta: Theta, *columns: Array) -> Array:
        x, tokens = columns
        eta, multiplier = np.asarray(theta["eta"]), tokens / x
        spread = theta["a"] * multiplier**eta + theta["b"] * multiplier**-eta
        return np.asarray(theta["E"] + spread * (6 * x * tokens) ** -eta)

    def exponents(
        self, theta: Theta, flops: float = 1e21, scale: Scale = "params", **others: float
    ) -> tuple[Array, Array]:
        """Both 1/2: with one exponent the best m does not depend on compute."""
        half = np.full(np.shape(theta["eta"]), 0.5)
        return half, half

    def allocation(self, theta: Theta, flops: Array | float, scale: Scale, **others: float) -> tuple[Array, Array]:
        """Scale and tokens of least loss at compute `flops`: where m = (b/a)^(1/(2·eta))."""
        multiplier = (np.asarray(theta["b"]) / theta["a"]) ** (1 / (2 * np.asarray(theta["eta"])))
        product = np.asarray(flops, float) / FLOPS_PER_UNIT[scale]
        return np.sqrt(product / multiplier), np.sqrt(product * multiplier)
