"""Farseer's law: floor, data term and data exponent all move with the scale of the model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from nachim.law.forms import Array, Expansion, Law, Sample, Theta, Units, best_spread

PIVOT = float(np.log(1e10))
"""Log of the tokens at which a point states the data term: amid those of most runs, so that it and the exponent trade
little. The law changes with the unit of tokens, which is why they are not divided by their mean."""
STEEPEST = 300.0
"""Largest log of any of its exponentials, so that a step too far overflows nothing: no fit comes near."""
BENDS = (-0.15, 0.15)
EXPONENTS = (0.1, 0.2, 0.35, 0.5)
FLOORS = (0.5, 0.75, 0.9)
TILTS = (-0.1, -0.03)
TURNS = (-0.1, 0.0, 0.1)


class Farseer(Law):
    """L = exp(s·x^q + S) + exp(B·x^b + Q)·D^(-exp(A·x^a + E)) (arXiv 2506.10972 eq. 3; x counts no embeddings).

    A point writes each exponent's p·x^w + r, x normalised, as level + tilt·(x^w - 1)/w, so that it stays defined at
    w = 0: level, tilt and w of the log floor, of the log data term at PIVOT, and of the log data exponent.
    """

    name: ClassVar[str] = "farseer"
    formula: ClassVar[str] = "exp(s·x^q + S) + exp(B·x^b + Q)·D^(-exp(A·x^a + E))"
    source: ClassVar[str] = "arXiv 2506.10972 eq. 3"
    coefficient_names: ClassVar[tuple[str, ...]] = ("s", "q", "S", "B", "b", "Q", "A", "a", "E")
    low: ClassVar[Array] = np.array([-8.0, -3.0, -1.5, -40.0, -8.0, -1.5, -6.0, -3.0, -1.5])
    high: ClassVar[Array] = np.array([1.0, 3.0, 1.5, 3.0, 8.0, 1.5, 2.0, 3.0, 1.5])
    unit_of: ClassVar[Mapping[str, float | str]] = {"tokens": 1.0}

    def value(self, z: Array, *logs: Array) -> Array:
        floor, data, _ = _parts(z, *logs)
        return np.asarray(np.logaddexp(floor, data))

    def expand(self, z: Array, *logs: Array) -> Expansion:
        floor, data, slopes = _parts(z, *logs)
        value = np.logaddexp(floor, data)
        share = np.exp(floor - value)
        rows = [each * (share if place < 3 else 1 - share) for place, each in enumerate(slopes)]
        return value, np.stack(np.broadcast_arrays(*rows), axis=-2), None

    def coefficients(self, z: Array, units: Units) -> dict[str, Array]:
        log_x, log_loss = np.log(units.x), np.log(units.loss)
        near = np.exp(z[..., 6])
        floor = _opened(z[..., 0] + log_loss, z[..., 1], z[..., 2], log_x)
        level, tilt = z[..., 3] + near * PIVOT + log_loss, z[..., 4] + near * z[..., 7] * PIVOT
        data, power = _opened(level, tilt, z[..., 5], log_x), _opened(z[..., 6], z[..., 7], z[..., 8], log_x)
        return dict(zip(self.coefficient_names, (*floor, *data, *power), strict=True))

    def loss(self, theta: Theta, *columns: Array) -> Array:
        x, tokens = columns
        # Far from any run the powers overflow; held at STEEPEST, they leave numbers.
        with np.errstate(over="ignore"):
            level, tilt, power = (
                np.minimum(theta[name] * x ** np.asarray(theta[bend]) + theta[shift], STEEPEST)
                for name, bend, shift in (("s", "q", "S"), ("B", "b", "Q"), ("A", "a", "E"))
            )
        return np.asarray(np.exp(level) + np.exp(np.clip(tilt - np.exp(power) * np.log(tokens), -STEEPEST, STEEPEST)))

    def starts(self, sample: Sample, weight: Array, count: int) -> Array:
        """Starts (count, size): a grid of the floor, of the data exponent and of the bends; level and tilt of the data
        term by least squares of log(L - floor) on them."""
        use = weight > 0
        (log_x, log_tokens), log_loss = (column[use] for column in sample.inputs), sample.log_loss[use]
        grid = itertools.product(FLOORS, TILTS, EXPONENTS, TURNS, BENDS, BENDS, BENDS)
        share, tilt, power, turn, *bends = np.array(list(grid)).T
        level = np.log(share) + log_loss.min() - tilt * log_x.max()
        none = np.zeros_like(share)
        z = np.stack([level, tilt, bends[0], none, none, bends[1], np.log(power), turn, bends[2]], axis=1)
        floor, data, _ = _parts(z, log_x, log_tokens)
        left = np.log(np.exp(log_loss) - np.minimum(np.exp(floor), 0.98 * np.exp(log_loss))) - data
        lean = _bend(log_x, bends[1][:, None])[0]
        centred = (lean - lean.mean(axis=1, keepdims=True)) * weight[use]
        z[:, 4] = (centred * left).sum(axis=1) / (centred * lean).sum(axis=1)
        z[:, 3] = np.average(left - z[:, 4:5] * lean, axis=1, weights=weight[use])
        return best_spread(self, sample, weight, z, count)


def _parts(z: Array, log_x: Array, log_tokens: Array) -> tuple[Array, Array, tuple[Array, ...]]:
    """Log floor and log data term, each (..., n), and the slope of the one that each coordinate is of."""
    base, tilt, w, level, lean, v, near, turn, u = np.moveaxis(z[..., None], -2, 0)
    (by_w, in_w), (by_v, in_v), (by_u, in_u) = (_bend(log_x, each) for each in (w, v, u))
    # the law's own data term is stated at one token; `there` carries it to PIVOT, with the exponent's level and tilt
    there = np.exp(near) * PIVOT
    fall = np.exp(np.minimum(near + turn * by_u, STEEPEST)) * log_tokens
    data = level + lean * by_v + there * (1 + turn * by_v) - fall
    of_power = there * (1 + turn * by_v) - fall, there * by_v - fall * by_u, -fall * turn * in_u
    slopes = (np.ones_like(by_w), by_w, tilt * in_w, np.ones_like(by_v), by_v, (lean + there * turn) * in_v, *of_power)
    return base + tilt * by_w, data, slopes


def _bend(log_x: Array, w: Array) -> tuple[Array, Array]:
    """(x^w - 1)/w, which is log x where w = 0, and its slope by w."""
    small = np.abs(w) < 1e-4
    safe = np.where(small, 1.0, w)
    bent = np.where(small, log_x + w * log_x**2 / 2, np.expm1(safe * log_x) / safe)
    slope = np.where(small, log_x**2 / 2 + w * log_x**3 / 3, (log_x * np.exp(safe * log_x) - bent) / safe)
    return bent, slope


def _opened(level: Array, tilt: Array, w: Array, log_x: float) -> tuple[Array, Array, Array]:
    """The p, w and r of p·x^w + r in original units; p and -r grow without bound towards w = 0."""
    w = np.where(np.abs(w) < 1e-9, 1e-9, w)
    return tilt / w * np.exp(-w * log_x), w, level - tilt / w
