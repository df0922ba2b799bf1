"""Precision of training: parameters that low-precision numbers leave, fitted (`law.precision` has known constants)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from nachim.law.forms import Array, Theta
from nachim.law.powers import Powers, Term
from nachim.law.precision import share_left


class WeightPrecision(Powers):
    """L = E + A·N_eff^-alpha + B·D^-beta, N_eff = x·(1 - e^(-P_w / gamma_weights)) (arXiv 2411.04330 eq. 3).

    `weight_bits` P_w is what the weights were trained in. Here 16 bits are a precision like any other, as in the
    paper's fits.
    """

    name: ClassVar[str] = "precision-weights"
    formula: ClassVar[str] = "E + A·N_eff^-alpha + B·D^-beta, N_eff = x·(1 - e^(-weight_bits/gamma_weights))"
    source: ClassVar[str] = "arXiv 2411.04330 eq. 3"
    inputs: ClassVar[tuple[str, ...]] = ("x", "tokens", "weight_bits")
    unit_of: ClassVar[Mapping[str, float | str]] = {"weight_bits": 1.0}
    terms: ClassVar[tuple[Term, ...]] = (Term("A", alpha="x"), Term("B", beta="tokens"))
    shapes: ClassVar[tuple[str, ...]] = ("gamma_weights",)
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"gamma_weights": (0.05, 100.0)}

    def effective(self, z: Array, *logs: Array) -> tuple[tuple[Array, ...], Array | None]:
        log_x, log_tokens, *log_bits = logs
        bends = np.zeros((len(logs), *z.shape, len(log_x)))
        for place, each in enumerate(log_bits, self.size - len(self.shapes)):
            gamma = np.exp(z[..., place, None])
            bits = np.exp(each)
            log_x = log_x + np.log(share_left(bits, gamma, np.expm1))
            bends[0, ..., place, :] = -(bits / gamma) / np.expm1(bits / gamma)
        return (log_x, log_tokens, *log_bits), bends

    def loss(self, theta: Theta, *columns: Array) -> Array:
        x, tokens, *bits = columns
        for name, each in zip(self.shapes, bits, strict=True):
            x = x * share_left(each, np.asarray(theta[name]), np.expm1)
        return super().loss(theta, x, tokens)


class Precision(WeightPrecision):
    """The same with activations and key-value cache: a factor for each (arXiv 2411.04330 eq. 4)."""

    name: ClassVar[str] = "precision"
    formula: ClassVar[str] = "E + A·N_eff^-alpha + B·D^-beta, N_eff = x·Π(1 - e^(-bits/gamma))"
    source: ClassVar[str] = "arXiv 2411.04330 eq. 4"
    inputs: ClassVar[tuple[str, ...]] = ("x", "tokens", "weight_bits", "activation_bits", "cache_bits")
    unit_of: ClassVar[Mapping[str, float | str]] = {"weight_bits": 1.0, "activation_bits": 1.0, "cache_bits": 1.0}
    shapes: ClassVar[tuple[str, ...]] = ("gamma_weights", "gamma_activations", "gamma_cache")
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {name: (0.05, 100.0) for name in shapes}
