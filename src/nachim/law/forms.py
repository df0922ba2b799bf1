"""What a scaling law is: loss as a function of the columns of a table of runs, in a small frozen class of its own.

A law works on normalised logarithms, so that its fit is well conditioned: each input and the loss are divided by
their geometric mean over the observations (`Units`), and a law's *point* `z` holds its coefficients in those
coordinates. Adding a law is one file with one class here beside and one line in `nachim.law.laws`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from nachim.spec.error import UserError, nearest

Array = npt.NDArray[np.float64]
Scale = Literal["params", "flops_per_token"]
Theta = Mapping[str, float | Array]
Expansion = tuple[Array, Array, Callable[[Array], Array] | None]

FLOPS_PER_UNIT: dict[Scale, float] = {"params": 6.0, "flops_per_token": 1.0}
"""Training FLOPs per token and unit of scale: C = 6·N·D (arXiv 2001.08361) or C = M·D (arXiv 2401.02954)."""
NOUNS = {"x": "model scales", "tokens": "token counts"}
DELTA = 1e-3
"""Where Huber's loss on log residuals turns linear (arXiv 2203.15556 appendix D.3); infinite is squared loss."""
DRAWN = 64
"""Points drawn for each start that is kept, where a law has no variable projection of its own."""


@dataclass(frozen=True)
class Units:
    """Geometric means of scale, tokens and loss, and of `others` by name: what a law's point is expressed in."""

    x: float
    tokens: float
    loss: float
    others: Mapping[str, float] = field(default_factory=dict)

    def of(self, name: str) -> float:
        """The unit of the input called `name`."""
        return {"x": self.x, "tokens": self.tokens}.get(name) or self.others[name]


@dataclass(frozen=True, eq=False)
class Sample:
    """Observations as a law sees them: normalised logs of the inputs called `names` and of the loss, each (n,)."""

    names: tuple[str, ...]
    inputs: tuple[Array, ...]
    log_loss: Array
    weight: Array
    units: Units

    @property
    def log_x(self) -> Array:
        """Log of the normalised scale, (n,)."""
        return self.inputs[self.names.index("x")]

    @property
    def log_tokens(self) -> Array:
        """Log of the normalised tokens, (n,)."""
        return self.inputs[self.names.index("tokens")]


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known of a point before any run: a normal distribution, independent in every coordinate.

    `mean` and `sd` are (size,), the sd infinite where nothing is known. `unit` is what the square of one sd counts in
    an objective (half of it, as for a residual): within Huber's delta a residual of the noise counts its square.
    """

    mean: Array
    sd: Array
    unit: float

    @property
    def precision(self) -> Array:
        """1 / sd², (size,)."""
        return 1 / self.sd**2

    def cost(self, z: Array) -> Array:
        """What points `z` (..., size) add to an objective, (...)."""
        return np.asarray(0.5 * self.unit * ((z - self.mean) ** 2 * self.precision).sum(axis=-1))

    def slope(self, z: Array) -> Array:
        """Its derivative, (..., size)."""
        return np.asarray(self.unit * (z - self.mean) * self.precision)


class Fittable:
    """What a fit adds to the misfit, and where its loss turns linear unless told otherwise."""

    prior: Prior | None = None
    delta: float = DELTA


class Law(Fittable, ABC):
    """A loss surface over columns of a table of runs.

    `inputs` names the columns that it reads, in the order in which `value` and `loss` take them: "x" is the chosen
    scale (N or M), the rest are columns of the table. Each is divided by its geometric mean, unless `unit_of` says
    otherwise: by a number, or by the unit of another input where only their ratio has a meaning. `levels` is how
    many distinct values of an input the law needs (3 by default). `low` and `high` bound the point; `likely` is the
    part of that box from which starts are drawn. A `prior` counts in every fit, whose loss turns linear at
    `delta` unless the fit says otherwise.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    coefficient_names: ClassVar[tuple[str, ...]]
    low: ClassVar[Array]
    high: ClassVar[Array]
    inputs: ClassVar[tuple[str, ...]] = ("x", "tokens")
    unit_of: ClassVar[Mapping[str, float | str]] = {}
    levels: ClassVar[Mapping[str, int]] = {}
    likely: ClassVar[tuple[Array, Array] | None] = None

    def informed(self, noise: float) -> Law:
        """The law with what is known of its coefficients, for runs of `noise` (standard deviation of log loss); itself
        where nothing is."""
        return self

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return len(self.coefficient_names)

    @property
    def allocates(self) -> bool:
        """Whether the law tells how to split compute between scale and tokens."""
        return {"x", "tokens"} <= set(self.inputs)

    @abstractmethod
    def value(self, z: Array, *logs: Array) -> Array:
        """Log of the normalised loss, shape (..., n), at points `z` (..., size) and inputs of shape (n,)."""

    @abstractmethod
    def expand(self, z: Array, *logs: Array) -> Expansion:
        """Value (..., n), slope (..., size, n), and a function from weights c (..., n) to the sum over n of
        c times the second derivative, (..., size, size); None instead of it has the fit use Gauss-Newton."""

    @abstractmethod
    def coefficients(self, z: Array, units: Units) -> dict[str, Array]:
        """Coefficients in the original units, each of shape (...), for points `z` of shape (..., size)."""

    @abstractmethod
    def loss(self, theta: Theta, *columns: Array) -> Array:
        """Loss for coefficients `theta` and columns in original units, in the order of `inputs`; they broadcast."""

    def predict(self, theta: Theta, *columns: Array | float, **named: Array | float) -> Array:
        """Loss for coefficients `theta` in original units, at columns given in the order of `inputs` or by name.

        Raises UserError when a column is missing or is not one that the law reads.
        """
        given = dict(zip(self.inputs, columns, strict=False)) | named
        if missing := [name for name in self.inputs if name not in given]:
            raise UserError(f"the {self.name} law also needs {' and '.join(missing)}")
        for name in given:
            if name not in self.inputs:
                raise UserError(f"the {self.name} law does not read {name!r}{nearest(name, self.inputs)}")
        return np.asarray(self.loss(theta, *(np.asarray(given[name], float) for name in self.inputs)))

    def starts(self, sample: Sample, weight: Array, count: int) -> Array:
        """Starting points (count, size) for runs of `weight` (n,); deterministic.

        Drawn evenly from the `likely` box; a law that is linear in some coefficients solves for those instead.
        """
        low, high = self.likely or (self.low, self.high)
        drawn = np.random.default_rng(0).uniform(low, high, (DRAWN * count, self.size))
        return best_spread(self, sample, weight, drawn, count)

    def shortfall(self, sample: Sample, use: npt.NDArray[np.bool_]) -> str | None:
        """Why the runs in `use` (n,) cannot determine the law, with what would be enough; None if they can."""
        n = int(use.sum())
        if n <= self.size:
            return (
                f"{n} runs cannot determine the {self.size} coefficients of the {self.name} law: "
                f"at least {self.size + 1} are needed"
            )
        found = {name: distinct(column[use]) for name, column in zip(self.inputs, sample.inputs, strict=True)}
        short = [name for name in self.inputs if found[name] < self.levels.get(name, 3)]
        if short and self.inputs == ("x", "tokens"):
            return (
                f"the runs hold {found['x']} distinct model scales and {found['tokens']} distinct token counts: "
                f"at least 3 of each are needed to see how loss falls with either"
            )
        if short:
            what = NOUNS.get(short[0], f"values of {short[0]!r}")
            return (
                f"the runs hold {found[short[0]]} distinct {what}: "
                f"at least {self.levels.get(short[0], 3)} are needed for the {self.name} law"
            )
        if self.allocates and distinct((sample.log_x + sample.log_tokens)[use]) < 2:
            return "all runs have one compute budget: runs at 2 or more budgets, 10x apart in all, are needed"
        return None

    def exponents(
        self, theta: Theta, flops: float = 1e21, scale: Scale = "params", **others: float
    ) -> tuple[Array, Array]:
        """How the optimal scale and tokens grow with compute near `flops`: d log x / d log C and 1 minus it."""
        ends = [np.log(self.allocation(theta, flops * turn, scale, **others)[0]) for turn in (0.5, 2.0)]
        model = (ends[1] - ends[0]) / np.log(4)
        return model, 1 - model

    def allocation(self, theta: Theta, flops: Array | float, scale: Scale, **others: float) -> tuple[Array, Array]:
        """Scale and tokens that minimise loss at compute `flops`, with the `others` inputs held; found on ever finer
        grids of log x, to 1e-7 of x: the lowest of the minima inside (C^0.02 to C^0.98), NaN where there is none. At
        the ends, a model of one token or of one parameter, a surface means nothing.

        Raises UserError for a law that does not read both scale and tokens.
        """
        if not self.allocates:
            raise UserError(f"the {self.name} law reads {' and '.join(self.inputs)}: it splits no compute")
        product = np.log(np.asarray(flops, float) / FLOPS_PER_UNIT[scale])
        columns = {name: np.asarray(value, float)[..., None] for name, value in theta.items()}
        shape = np.broadcast_shapes(product.shape, *(np.shape(value) for value in theta.values()))
        product = np.broadcast_to(product, shape)
        low, high = 0.02 * product, 0.98 * product
        for zoom in range(6):
            grid = np.linspace(low, high, 129, axis=-1)
            loss = self.predict(columns, **{"x": np.exp(grid), "tokens": np.exp(product[..., None] - grid)}, **others)
            if zoom == 0:
                middle = loss[..., 1:-1]
                valley = (middle < loss[..., :-2]) & (middle < loss[..., 2:])
                loss = np.pad(
                    np.where(valley, middle, np.inf), [(0, 0)] * len(shape) + [(1, 1)], constant_values=np.inf
                )
            lowest = loss.argmin(axis=-1)
            centre = np.take_along_axis(grid, lowest[..., None], axis=-1)[..., 0]
            if zoom == 0:
                centre = np.where(lowest == 0, np.nan, centre)
            low, high = centre - (high - low) / 128, centre + (high - low) / 128
        return np.exp(centre), np.exp(product - centre)


def distinct(logs: Array) -> int:
    """How many values lie more than 1 % apart."""
    ordered = np.sort(logs)
    return int(len(ordered) > 0) + int((np.diff(ordered) > 0.01).sum())


def best_spread(law: Law, sample: Sample, weight: Array, points: Array, count: int) -> Array:
    """`count` of the points (m, size), ranked by weighted absolute residual: the best, and some from far away."""
    use = weight > 0
    off = law.value(points, *(column[use] for column in sample.inputs)) - sample.log_loss[use]
    cost = np.nan_to_num((weight[use] * np.abs(off)).sum(axis=1), nan=np.inf)
    ranks = np.unique(np.geomspace(1, len(points), 2 * count).astype(int) - 1)[:count]
    best: Array = points[np.argsort(cost, kind="stable")[ranks]]
    return best
