"""Fitting a law to observations: variable projection for the starts, then a batched exact Newton method."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nachim.law.certificate import Certificate, certify
from nachim.law.forms import DELTA, Array, Law, Sample, Scale, Units
from nachim.law.observe import Observations
from nachim.law.solve import minimise
from nachim.spec.error import UserError, nearest

STARTS = 16
NARROWING = ((0.1, 16), (0.01, 10), (DELTA, 40))
"""Huber's delta and the steps taken with it: from nearly least squares to the real one."""
POLISH = 60


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to observations.

    `coefficients` are in original units; `residuals` (n,) are log(observed / predicted); `certificate` says how good
    a minimum it is; `point` is the fit in the law's own normalised coordinates; `flops` the largest compute fitted;
    `seconds` is its wall time.
    """

    law: Law
    scale: Scale
    coefficients: dict[str, float]
    residuals: Array
    certificate: Certificate
    point: Array
    sample: Sample
    flops: float
    seconds: float

    @property
    def objective(self) -> float:
        """Weighted *sum* of the losses (Huber's by default) of log residuals."""
        return self.certificate.objective

    @property
    def condition(self) -> float:
        """Condition number of the residuals' Jacobian: above 1e4 single coefficients mean little, predictions do."""
        return self.certificate.condition

    @property
    def starts(self) -> int:
        """How many starting points were tried."""
        return self.certificate.starts

    @property
    def starts_at_best(self) -> int:
        """How many of them reached the best basin."""
        return self.certificate.at_best

    @property
    def at_bound(self) -> tuple[str, ...]:
        """Coefficients pressed against a bound."""
        return self.certificate.at_bound

    @property
    def n(self) -> int:
        """Number of observations that count, those of positive weight."""
        return int((self.sample.weight > 0).sum())

    @property
    def exponents(self) -> dict[str, float]:
        """How the compute-optimal `model` scale and `data` grow with compute (they sum to 1), at the largest fitted.

        Empty for a law that does not read these two alone, or whose loss has no minimum there.
        """
        if self.law.inputs != ("x", "tokens"):
            return {}
        model, data = self.law.exponents(self.coefficients, self.flops, self.scale)
        return {"model": float(model), "data": float(data)} if np.isfinite(model) else {}

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


def solve_many(
    law: Law, sample: Sample, weights: Array, starts: int = STARTS, delta: float | None = None
) -> tuple[Array, Array, Array]:
    """Fit the law once for each row of `weights` (m, n), all in one batch, from `starts` points each.

    Returns the best points (m, size), their objectives (m,), and how many starts reached each (m,).
    """
    delta = law.delta if delta is None else delta
    ends, costs = _ends(law, sample, weights, starts, delta)
    chosen = ends[np.arange(len(weights)), costs.argmin(axis=1)]
    target = np.broadcast_to(sample.log_loss, weights.shape)
    chosen, best = minimise(law, sample.inputs, target, weights, chosen, delta, POLISH)
    return chosen, best, (costs <= best[:, None] * (1 + 1e-6) + 1e-20).sum(axis=1)


def _ends(law: Law, sample: Sample, weights: Array, starts: int, delta: float) -> tuple[Array, Array]:
    """Where each start ends, (m, starts, size), and its objective (m, starts). The starts are drawn in under ever
    narrower Huber losses, from nearly least squares to the real one."""
    points = np.concatenate([law.starts(sample, weight, starts) for weight in weights])
    spread = np.repeat(weights, len(points) // len(weights), axis=0)
    target = np.broadcast_to(sample.log_loss, spread.shape)
    for wide, steps in NARROWING:
        points, costs = minimise(law, sample.inputs, target, spread, points, max(wide, delta), steps)
    if delta < DELTA:
        points, costs = minimise(law, sample.inputs, target, spread, points, delta, POLISH)
    return points.reshape(len(weights), -1, law.size), costs.reshape(len(weights), -1)


def fit(
    obs: Observations,
    law: Law,
    scale: Scale,
    loss: Literal["huber", "squared"] = "huber",
    delta: float | None = None,
) -> Fit:
    """Fit `law` to `obs` by the weighted sum of losses of log residuals, from many starts; deterministic.

    `loss` is Huber's, linear beyond `delta` (the law's unless given), or squared, which one bad run can bend. Raises
    UserError, saying what would be enough, when the runs cannot determine the law, or for a `delta` not above 0.
    """
    started = time.perf_counter()
    if loss not in ("huber", "squared"):
        raise UserError(f"no loss is called {loss!r}{nearest(loss, ('huber', 'squared'))}")
    delta = law.delta if delta is None else delta
    if not delta > 0:
        raise UserError(f"delta is {delta}: Huber's loss turns linear at a residual above 0")
    reach = delta if loss == "huber" else math.inf
    sample = sample_of(obs, scale, law)
    reason = shortfall(sample, law)
    if reason:
        raise UserError(reason)
    ends = _ends(law, sample, sample.weight[None], STARTS, reach)[0][0]
    target = np.broadcast_to(sample.log_loss, (len(ends), len(obs)))
    weight = np.broadcast_to(sample.weight, target.shape)
    points, objectives = minimise(law, sample.inputs, target, weight, ends, reach, POLISH)
    point = points[objectives.argmin()]
    value = law.value(point, *sample.inputs)
    return Fit(
        law=law,
        scale=scale,
        coefficients=as_floats(law.coefficients(point, sample.units)),
        residuals=sample.log_loss - value,
        certificate=certify(law, sample, point, points, objectives, reach),
        point=point,
        sample=sample,
        flops=float(obs.flops[sample.weight > 0].max()),
        seconds=time.perf_counter() - started,
    )


def as_floats(theta: Mapping[str, Array]) -> dict[str, float]:
    """Coefficients of one fit as plain numbers."""
    return {name: float(value) for name, value in theta.items()}
