"""Laws that are a floor plus a few power terms, E + A·x^-alpha + B·D^-beta + ..., declared rather than programmed.

A law of this kind names its terms; value, exact slope and curvature, starts by variable projection and coefficients in
original units follow from them (docs/laws.md walks through one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from nachim.law.forms import Array, Expansion, Law, Sample, Theta, Units, best_spread

FLOORS = (0.02, 0.4, 0.7, 0.9)
"""Shares of the least loss that a start supposes to be the floor."""
EXPONENTS = (0.04, 0.9)
"""Range of the exponents that a start supposes."""
DRAWS = 384
"""Draws of exponents, shapes and floor from which the starts are chosen."""
SWEEPS = 40
"""Multiplicative updates of the sizes of a draw: a start need not be a minimum."""


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
        """Starts (count, size): seeded draws of exponents, shapes and floor; sizes by non-negative least squares."""
        use = weight > 0
        logs, loss = tuple(log[use] for log in sample.inputs), np.exp(sample.log_loss[use])
        rng = np.random.default_rng(0)
        z = np.zeros((DRAWS, self.size))
        z[:, 0] = rng.choice(FLOORS, DRAWS) * loss.min()
        for place in range(1 + len(self.terms), self.size):
            z[:, place] = self._drawn(place, rng)
        z[:, 1 : 1 + len(self.terms)] = self._log_sizes(z, logs, loss, weight[use])
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

    def _log_sizes(self, z: Array, logs: tuple[Array, ...], loss: Array, weight: Array) -> Array:
        """Log sizes (draws, terms) for which the terms make up loss - floor, in relative error and all positive: the
        multiplicative updates of Lee and Seung (Advances in NIPS 13, 2000, theorem 1)."""
        inputs, _ = self.effective(z, *logs)
        trust = np.sqrt(weight) / loss
        columns = np.stack([np.exp(each) * trust for each in self.log_terms(z, inputs)], axis=1)
        wanted = (loss - z[:, :1]) * trust
        size = np.repeat(wanted.sum(1, keepdims=True) / columns.sum(axis=(1, 2))[:, None], columns.shape[1], axis=1)
        pull, gram = np.einsum("dtn,dn->dt", columns, wanted), columns @ columns.swapaxes(1, 2)
        for _ in range(SWEEPS):
            size = size * pull / np.einsum("dts,ds->dt", gram, size)
        return np.log(size + 1e-30)
