"""Fitting a law to observations: variable projection for the starts, then a batched exact Newton method."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nachim.law.forms import Array, Law, Scale, Units
from nachim.law.observe import Observations
from nachim.law.solve import DELTA, minimise
from nachim.spec.error import UserError

STARTS = 16
EFFECTIVE_EXPONENTS = (0.08, 0.18, 0.32, 0.6)
FLOORS = (0.02, 0.4, 0.7, 0.9)
NARROWING = ((0.1, 16), (0.01, 10), (DELTA, 40))


@dataclass(frozen=True, eq=False)
class Sample:
    """Observations as a law sees them: normalised logs, each (n,), and the units that undo it."""

    log_x: Array
    log_tokens: Array
    log_loss: Array
    weight: Array
    units: Units

    @property
    def inputs(self) -> tuple[Array, Array]:
        """Log x and log D, each (n,)."""
        return self.log_x, self.log_tokens


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

    def predict(self, x: Array | float, tokens: Array | float) -> Array:
        """Loss at scale `x` (in the fit's scale) and `tokens`."""
        return self.law.predict(self.coefficients, x, tokens)

    def allocation(self, flops: Array | float) -> tuple[Array, Array]:
        """Scale and tokens that minimise the predicted loss at compute `flops`."""
        return self.law.allocation(self.coefficients, flops, self.scale)


def sample_of(obs: Observations, scale: Scale) -> Sample:
    """Normalise observations by their geometric means. Raises UserError when the scale column is absent."""
    log_x, log_tokens, log_loss = np.log(obs.x(scale)), np.log(obs.tokens), np.log(obs.loss)
    units = Units(*(float(np.exp(column.mean())) for column in (log_x, log_tokens, log_loss)))
    return Sample(
        log_x=log_x - np.log(units.x),
        log_tokens=log_tokens - np.log(units.tokens),
        log_loss=log_loss - np.log(units.loss),
        weight=obs.weight,
        units=units,
    )


def shortfall(sample: Sample, law: Law, kept: Array | None = None) -> str | None:
    """Why the runs (those of positive `kept`, or weight) cannot determine the law; None if they can."""
    use = (sample.weight if kept is None else kept) > 0
    n, x, tokens = int(use.sum()), _distinct(sample.log_x[use]), _distinct(sample.log_tokens[use])
    budgets = _distinct((sample.log_x + sample.log_tokens)[use])
    if n <= law.size:
        return (
            f"{n} runs cannot determine the {law.size} coefficients of the {law.name} law: "
            f"at least {law.size + 1} are needed"
        )
    if x < 3 or tokens < 3:
        return (
            f"the runs hold {x} distinct model scales and {tokens} distinct token counts: "
            f"at least 3 of each are needed to see how loss falls with either"
        )
    if budgets < 2:
        return "all runs have one compute budget: runs at 2 or more budgets, 10x apart in all, are needed"
    return None


def _distinct(logs: Array) -> int:
    ordered = np.sort(logs)
    return int(len(ordered) > 0) + int((np.diff(ordered) > 0.01).sum())


def starting_points(law: Law, sample: Sample, weight: Array, count: int) -> Array:
    """Starts (count, size) by variable projection: a grid of exponents, k and E; A and B by least squares.

    Given alpha, beta, k and E, the law is linear in A and B for the target (L - E)^(1/k) (arXiv 2603.22339
    for k = 1); each row is weighted by the slope of that transform, so the residuals stay relative ones.
    The grid is ranked, and ranks are taken with growing gaps: the best ones, and some from far away.
    """
    use = weight > 0
    loss, w = np.exp(sample.log_loss[use]), weight[use]
    grid = itertools.product(EFFECTIVE_EXPONENTS, EFFECTIVE_EXPONENTS, law.outer_powers, FLOORS)
    alpha, beta, k, floor = np.array(list(grid)).T[..., None]
    alpha, beta, floor = alpha / k, beta / k, floor * loss.min()
    trust = w**0.5 * k * (loss - floor) ** (1 - 1 / k) / loss
    by_x = trust * np.exp(-alpha * sample.log_x[use])
    by_tokens = trust * np.exp(-beta * sample.log_tokens[use])
    wanted = trust * (loss - floor) ** (1 / k)
    a, b = _two_positive(by_x, by_tokens, wanted)
    powers = np.concatenate([alpha, beta, k], axis=1)
    points = law.point(powers, np.log(a), np.log(b), floor[:, 0])
    off = law.value(points, sample.log_x[use], sample.log_tokens[use]) - sample.log_loss[use]
    ranks = np.unique(np.geomspace(1, len(points), 2 * count).astype(int) - 1)[:count]
    best: Array = points[np.argsort((w * np.abs(off)).sum(axis=1), kind="stable")[ranks]]
    return best


def _two_positive(u: Array, v: Array, t: Array) -> tuple[Array, Array]:
    """Least squares t ≈ a·u + b·v along the last axis, with a and b at least a sliver above 0."""
    uu, vv, uv, ut, vt = ((p * q).sum(-1) for p, q in ((u, u), (v, v), (u, v), (u, t), (v, t)))
    determinant = np.maximum(uu * vv - uv**2, 1e-12 * uu * vv)
    a, b = (vv * ut - uv * vt) / determinant, (uu * vt - uv * ut) / determinant
    a, b = np.where(b <= 0, ut / uu, a), np.where(a <= 0, vt / vv, b)
    return np.maximum(a, 1e-6 * ut / uu), np.maximum(b, 1e-6 * vt / vv)


def solve_many(law: Law, sample: Sample, weights: Array, starts: int = STARTS) -> tuple[Array, Array, Array]:
    """Fit the law once for each row of `weights` (m, n), all in one batch, from `starts` points each.

    Returns the best points (m, size), their objectives (m,), and how many starts reached each (m,). The
    starts are drawn in under ever narrower Huber losses, from nearly least squares to the real one.
    """
    points = np.concatenate([starting_points(law, sample, weight, starts) for weight in weights])
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
    sample = sample_of(obs, scale)
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
