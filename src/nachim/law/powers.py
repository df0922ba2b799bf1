"""Laws that are a floor plus a few power terms, E + A·x^-alpha + B·D^-beta + ..., declared rather than programmed.

A law of this kind names its terms; value, exact slope and curvature, starts by variable projection and coefficients in
original units follow from them (docs/laws.md walks through one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import nnls

from nachim.law.forms import Array, Expansion, Law, Sample, Theta, Units, best_spread

EXPONENTS = (0.04, 0.9)
"""Range of the exponents that a start supposes."""
DRAWS = 384
"""Draws of exponents and shapes from which the starts are chosen."""
LEAST = 1e-3
"""Least size of a term in a start, over the least loss: one that is nil could not be moved."""


class Term:
    """`size`·input^-exponent·...: the name of its coefficient, and the input that each named exponent belongs to."""

    def __init__(self, size: str, **powers: str) -> None:
        self.size, self.powers = size, powers


class Powers(Law):
    """A floor plus power terms; a point z holds the floor, the log sizes, the exponents and the logs of the `shapes`.

    `coordinates` names them; they are the coefficients too, but for laws that publish others. Where the law overrides
    `effective`, its terms are powers of effective inputs, which the shapes bend. `bounds` are of exponents that need
    others than (1e-3, 8), and of shapes (by default 1e-3 to 1e4).
    """

    floor: ClassVar[str] = "E"
    terms: ClassVar[tuple[Term, ...]]
    shapes: ClassVar[tuple[str, ...]] = ()
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    coordinates: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        sizes = tuple(term.size for term in cls.terms)
        exponents = tuple(dict.fromkeys(name for term in cls.terms for name in term.powers))
        cls.coordinates = (cls.floor, *sizes, *exponents, *cls.shapes)
        if "coefficient_names" not in cls.__dict__:
            cls.coefficient_names = cls.coordinates
        limits = [(0.0, 3.0), *[(-80.0, 40.0)] * len(sizes)]
        limits += [cls.bounds.get(name, (1e-3, 8.0)) for name in exponents]
        limits += [np.log(cls.bounds.get(name, (1e-3, 1e4))) for name in cls.shapes]
        cls.low, cls.high = np.array(limits).T

    def effective(self, z: Array, *logs: Array) -> tuple[tuple[Array, ...], Array | None]:
        """Logs of the effective inputs, each (..., n), and their slopes, (inputs, ..., size, n); None where all are
        the inputs themselves."""
        return logs, None

    def value(self, z: Array, *logs: Array) -> Array:
        inputs, _ = self.effective(z, *logs)
        return np.asarray(np.log(z[..., :1] + sum(np.exp(each) for each in self.log_terms(z, inputs))))

    def expand(self, z: Array, *logs: Array) -> Expansion:
        inputs, bends = self.effective(z, *logs)
        parts = [np.exp(each) for each in self.log_terms(z, inputs)]
        loss = z[..., :1] + sum(parts)
        slopes = [self._slope(place, z, inputs, bends) for place in range(len(parts))]
        slope = np.zeros((*z.shape, loss.shape[-1]))
        slope[..., 0, :] = 1
        for part, each in zip(parts, slopes, strict=True):
            slope += part[..., None, :] * each
        slope /= loss[..., None, :]

        def curvature(c: Array) -> Array:
            bend = -(slope * c[..., None, :]) @ slope.swapaxes(-1, -2)
            for part, each in zip(parts, slopes, strict=True):
                bend += (each * (c * part / loss)[..., None, :]) @ each.swapaxes(-1, -2)
            return bend

        return np.log(loss), slope, curvature if bends is None else None

    def coefficients(self, z: Array, units: Units) -> dict[str, Array]:
        theta = {name: z[..., place] for place, name in enumerate(self.coordinates)}
        theta |= {name: np.exp(theta[name]) for name in self.shapes}
        for term in self.terms:
            shift = sum(theta[power] * np.log(units.of(name)) for power, name in term.powers.items())
            theta[term.size] = np.exp(theta[term.size] + shift) * units.loss
        return theta | {self.floor: theta[self.floor] * units.loss}

    def loss(self, theta: Theta, *columns: Array) -> Array:
        total = np.asarray(theta[self.floor])
        for term in self.terms:
            part = np.asarray(theta[term.size])
            for power, name in term.powers.items():
                part = part * columns[self.inputs.index(name)] ** -np.asarray(theta[power])
            total = total + part
        return total

    def starts(self, sample: Sample, weight: Array, count: int) -> Array:
        """Starts (count, size): seeded draws of exponents and shapes; floor and sizes by non-negative least squares."""
        use = weight > 0
        logs, loss = tuple(log[use] for log in sample.inputs), np.exp(sample.log_loss[use])
        rng = np.random.default_rng(0)
        z = np.zeros((DRAWS, self.size))
        for place in range(1 + len(self.terms), self.size):
            z[:, place] = self._drawn(place, rng)
        z[:, : 1 + len(self.terms)] = self._sizes(z, logs, loss, weight[use])
        return best_spread(self, sample, weight, z, count)

    def log_terms(self, z: Array, inputs: tuple[Array, ...]) -> list[Array]:
        """Log of each term, (..., n), from the logs of the effective inputs."""
        found = []
        for place, term in enumerate(self.terms, 1):
            total = z[..., place, None]
            for power, name in term.powers.items():
                total = total - z[..., self.coordinates.index(power), None] * inputs[self.inputs.index(name)]
            found.append(total)
        return found

    def _slope(self, place: int, z: Array, inputs: tuple[Array, ...], bends: Array | None) -> Array:
        """Slope of the log of a term, (..., size, n)."""
        slope = np.zeros((*z.shape, inputs[0].shape[-1]))
        slope[..., place + 1, :] = 1
        for power, name in self.terms[place].powers.items():
            at, of = self.coordinates.index(power), self.inputs.index(name)
            slope[..., at, :] -= inputs[of]
            if bends is not None:
                slope -= z[..., at, None, None] * bends[of]
        return slope

    def _drawn(self, place: int, rng: np.random.Generator) -> Array:
        low, high = self.low[place], self.high[place]
        if self.coordinates[place] in self.shapes:
            return rng.uniform(low + 0.25 * (high - low), high - 0.25 * (high - low), DRAWS)
        drawn = np.exp(rng.uniform(*np.log(EXPONENTS), DRAWS))
        return np.clip(drawn if low >= 0 else drawn * rng.choice((-0.5, 1.0), DRAWS), low, high)

    def _sizes(self, z: Array, logs: tuple[Array, ...], loss: Array, weight: Array) -> Array:
        """Floor and log sizes (draws, 1 + terms) that fit the loss best in relative squares, none of them negative."""
        inputs, _ = self.effective(z, *logs)
        trust = np.sqrt(weight) / loss
        terms = np.broadcast_arrays(np.zeros(len(loss)), *self.log_terms(z, inputs))
        columns = np.exp(np.stack(terms, axis=-1)) * trust[:, None]
        stretch = np.linalg.norm(columns, axis=1)
        wanted = np.broadcast_to(trust * loss, columns.shape[:2])[..., None]
        small = np.linalg.qr(np.concatenate([columns / stretch[:, None], wanted], axis=-1), mode="r")
        sizes = np.array([nnls(each[:, :-1], each[:, -1])[0] for each in small]) / stretch
        sizes[:, 1:] = np.log(np.maximum(sizes[:, 1:], LEAST * loss.min()))
        return sizes
