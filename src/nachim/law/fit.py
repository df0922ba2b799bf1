"""Fitting a law to observations: variable projection for the starts, then a batched exact Newton method."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nachim.law.forms import Array, Law, Sample, Scale, Units
from nachim.law.observe import Observations
from nachim.law.solve import DELTA, minimise
from nachim.spec.error import UserError

STARTS = 16
NARROWING = ((0.1, 16), (0.01, 10), (DELTA, 40))


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to observations.

    `coefficients` are in original units; `objective` is the weighted *sum* of Huber losses of log residuals;
    `residuals` (n,) are log(observed / predicted); `condition` is the condition number of the residuals'
    Jacobian in the law's coordinates (above 1e4, single coefficients mean little, predictions still do);
    `starts_at_best` of `starts` reached the best basin; `at_bound` names coefficients pressed against a
    bound; `point` is the fit in the law's own normalised coordinates; `seconds` is its wall time.
    """

    law: Law
    scale: Scale
    coefficients: dict[str, float]
    objective: float
    residuals: Array
    condition: float
    starts: int
    starts_at_best: int
    at_bound: tuple[str, ...]
    point: Array
    sample: Sample
    seconds: float

    @property
    def n(self) -> int:
        """Number of observations that count, those of positive weight."""
        return int((self.sample.weight > 0).sum())

    @property
    def exponents(self) -> dict[str, float]:
        """How the compute-optimal `model` scale and `data` grow with compute (they sum to 1)."""
        model, data = self.law.exponents(self.coefficients)
        return {"model": float(model), "data": float(data)}

    @property
    def mape(self) -> float:
        """Mean absolute percentage error on the observations it was fitted to, in percent."""
        return float(100 * np.mean(np.abs(np.expm1(-self.residuals[self.sample.weight > 0]))))

    def predict(self, *columns: Array | float, **named: Array | float) -> Array:
        """Loss at the law's inputs, in their order (scale `x`, in the fit's scale, and `tokens` first) or by name."""
        return self.law.predict(self.coefficients, *columns, **named)

    def allocation(self, flops: Array | float) -> tuple[Array, Array]:
        """Scale and tokens that minimise the predicted loss at compute `flops`."""
        return self.law.allocation(self.coefficients, flops, self.scale)


def sample_of(obs: Observations, scale: Scale, law: Law | None = None) -> Sample:
    """The columns that `law` reads (scale and tokens by default), each divided by its unit (see `Law.unit_of`).

    Raises UserError when a column is absent or holds a number that is not positive.
    """
    names = law.inputs if law else ("x", "tokens")
    logs = {name: np.log(obs.column(name, scale)) for name in names}
    unit_of = law.unit_of if law else {}
    unit = {name: _geometric_mean(column) for name, column in logs.items()}
    for name, given in unit_of.items():
        unit[name] = unit[given] if isinstance(given, str) else given
    log_loss = np.log(obs.loss)
    units = Units(
        x=unit.get("x", 1.0),
        tokens=unit.get("tokens", 1.0),
        loss=_geometric_mean(log_loss),
        others={name: value for name, value in unit.items() if name not in ("x", "tokens")},
    )
    return Sample(
        names=names,
        inputs=tuple(logs[name] - np.log(unit[name]) for name in names),
        log_loss=log_loss - np.log(units.loss),
        weight=obs.weight,
        units=units,
    )


def _geometric_mean(logs: Array) -> float:
    return float(np.exp(logs.mean()))


def shortfall(sample: Sample, law: Law, kept: Array | None = None) -> str | None:
    """Why the runs (those of positive `kept`, or weight) cannot determine the law; None if they can."""
    return law.shortfall(sample, (sample.weight if kept is None else kept) > 0)


def solve_many(law: Law, sample: Sample, weights: Array, starts: int = STARTS) -> tuple[Array, Array, Array]:
    """Fit the law once for each row of `weights` (m, n), all in one batch, from `starts` points each.

    Returns the best points (m, size), their objectives (m,), and how many starts reached each (m,). The
    starts are drawn in under ever narrower Huber losses, from nearly least squares to the real one.
    """
    points = np.concatenate([law.starts(sample, weight, starts) for weight in weights])
    spread = np.repeat(weights, starts, axis=0)
    target = np.broadcast_to(sample.log_loss, spread.shape)
    for delta, steps in NARROWING:
        points, costs = minimise(law, sample.inputs, target, spread, points, delta=delta, steps=steps)
    points, costs = points.reshape(len(weights), starts, -1), costs.reshape(len(weights), starts)
    chosen = points[np.arange(len(weights)), costs.argmin(axis=1)]
    target = np.broadcast_to(sample.log_loss, weights.shape)
    chosen, best = minimise(law, sample.inputs, target, weights, chosen, steps=60)
    return chosen, best, (costs <= best[:, None] * (1 + 1e-6) + 1e-20).sum(axis=1)


def fit(obs: Observations, law: Law, scale: Scale) -> Fit:
    """Fit `law` to `obs` by the weighted Huber loss (delta 1e-3) of log residuals; deterministic.

    Raises UserError, saying what would be enough, when the runs cannot determine the law.
    """
    started = time.perf_counter()
    sample = sample_of(obs, scale, law)
    reason = shortfall(sample, law)
    if reason:
        raise UserError(reason)
    points, costs, reached = solve_many(law, sample, sample.weight[None])
    return described(law, scale, sample, points[0], (float(costs[0]), int(reached[0])), started)


def described(law: Law, scale: Scale, sample: Sample, point: Array, outcome: tuple[float, int], started: float) -> Fit:
    """The Fit for a solved `point`; `outcome` is its objective and the number of starts that reached it."""
    value, slope, _ = law.expand(point, *sample.inputs)
    pressed = (point <= law.low + 1e-9) | (point >= law.high - 1e-9)
    return Fit(
        law=law,
        scale=scale,
        coefficients=as_floats(law.coefficients(point, sample.units)),
        objective=outcome[0],
        residuals=sample.log_loss - value,
        condition=float(np.linalg.cond((slope * np.sqrt(sample.weight)).T)),
        starts=STARTS,
        starts_at_best=outcome[1],
        at_bound=tuple(n for n, at in zip(law.coefficient_names, pressed, strict=True) if at),
        point=point,
        sample=sample,
        seconds=time.perf_counter() - started,
    )


def as_floats(theta: Mapping[str, Array]) -> dict[str, float]:
    """Coefficients of one fit as plain numbers."""
    return {name: float(value) for name, value in theta.items()}
