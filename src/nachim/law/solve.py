"""Many fits of one law at once: a damped Newton method, batched over starts, cuts and bootstrap draws.

A batch row is one fit. Every row sees the same inputs but has its own targets and weights, so that leaving
runs out (weight 0), resampling (other targets) and restarting (another point) are all the same call.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nachim.law.forms import DELTA, Array, Law

NUMBERS = 2**16
"""Slopes held at once, rows·size·n: more than a core's cache takes twice as long."""


def huber(residual: Array, delta: float = DELTA) -> Array:
    """r²/2 within `delta`, delta·(|r| - delta/2) outside; elementwise."""
    within = np.minimum(np.abs(residual), delta)
    inside: Array = within * (np.abs(residual) - 0.5 * within)
    return inside


def minimise(
    law: Law,
    inputs: tuple[Array, ...],
    target: Array,
    weight: Array,
    start: Array,
    delta: float | None = None,
    steps: int = 15,
) -> tuple[Array, Array]:
    """Minimise the weighted sum of Huber losses of log residuals, and the law's prior, one fit a row.

    `inputs` are the normalised logs that the law reads, each (n,); `target` (rows, n) is log loss, `weight`
    (rows, n), `start` (rows, size); `delta` is the law's unless given. Returns the points (rows, size) and
    their objectives (rows,).

    The step solves (H + λ·M)·s = -g, where H is the exact Hessian of the objective (Huber's core only, so
    it converges quadratically) and M the reweighted least-squares matrix that majorises it (so a large λ
    always descends). Coordinates pressed against their bounds are held there.
    """
    delta = law.delta if delta is None else delta
    many = max(1, NUMBERS // (law.size * target.shape[1]))
    parts = [slice(first, first + many) for first in range(0, max(1, len(start)), many)]
    done = [_minimise(law, inputs, target[part], weight[part], start[part], delta, steps) for part in parts]
    points, costs = zip(*done, strict=True)
    return np.concatenate(points), np.concatenate(costs)


def _minimise(
    law: Law, inputs: tuple[Array, ...], target: Array, weight: Array, start: Array, delta: float, steps: int
) -> tuple[Array, Array]:
    point = np.clip(start, law.low, law.high)
    cost = _cost(law, inputs, target, weight, point, delta)
    damping = np.full(len(point), 1.0)
    live = np.arange(len(point))
    for _ in range(steps):
        y, w, z = target[live], weight[live], point[live]
        step, gain = _step(law, inputs, y, w, z, delta, damping[live])
        moved = np.clip(z + step, law.low, law.high)
        fresh = _cost(law, inputs, y, w, moved, delta)
        better = fresh < cost[live]
        unfinished = (np.abs(moved - z).max(axis=1) > 1e-10) & (np.abs(gain) > 1e-12 * cost[live])
        point[live[better]] = moved[better]
        cost[live[better]] = fresh[better]
        damping[live] = np.where(better, damping[live] * 0.15 + 1e-9, damping[live] * 6)
        live = live[unfinished & (damping[live] < 1e9)]
        if not live.size:
            break
    return point, cost


def _cost(law: Law, inputs: tuple[Array, ...], y: Array, w: Array, z: Array, delta: float) -> Array:
    misfit = (w * huber(law.value(z, *inputs) - y, delta)).sum(axis=-1)
    return misfit if law.prior is None else misfit + law.prior.cost(z)


def stationarity(
    law: Law, inputs: tuple[Array, ...], target: Array, weight: Array, point: Array, delta: float = DELTA
) -> tuple[Array, Array, Array]:
    """How still each point is: its gradient (rows, size), 0 where it presses against a bound, how much a Newton step
    would gain, at least 0, (rows,), and its objective (rows,). Arguments as for `minimise`."""
    cost = _cost(law, inputs, target, weight, point, delta)
    gradient, held, exact, safe = _system(law, inputs, target, weight, point, delta)
    still = np.full(len(point), 1e-9)
    gains = [-(gradient * _damped(m, safe, still, gradient, held)).sum(axis=1) for m in (exact, safe)]
    return gradient, np.where(gains[0] >= 0, gains[0], gains[1]), cost


def _system(
    law: Law, inputs: tuple[Array, ...], y: Array, w: Array, z: Array, delta: float
) -> tuple[Array, npt.NDArray[np.bool_], Array, Array]:
    value, slope, curvature = law.expand(z, *inputs)
    residual = value - y
    size = np.abs(residual)
    pull = w * np.clip(residual, -delta, delta)
    gradient = np.einsum("rpn,rn->rp", slope, pull)
    majorant = w * np.minimum(1.0, delta / np.maximum(size, 1e-300))
    core = w * (size <= delta)
    both = np.concatenate([slope * majorant[:, None, :], slope * core[:, None, :]], axis=1)
    both = both @ slope.swapaxes(1, 2)
    safe, exact = both[:, : law.size], both[:, law.size :]
    if curvature is not None:
        exact = exact + curvature(pull)
    if law.prior is not None:
        gradient = gradient + law.prior.slope(z)
        bend = law.prior.unit * np.diag(law.prior.precision)
        safe, exact = safe + bend, exact + bend
    held = ((z <= law.low) & (gradient > 0)) | ((z >= law.high) & (gradient < 0))
    gradient = np.where(held, 0.0, gradient)
    return gradient, held, exact, safe


def _step(
    law: Law, inputs: tuple[Array, ...], y: Array, w: Array, z: Array, delta: float, damping: Array
) -> tuple[Array, Array]:
    gradient, held, exact, safe = _system(law, inputs, y, w, z, delta)
    step = _damped(exact + damping[:, None, None] * safe, safe, damping, gradient, held)
    gain = (gradient * step).sum(axis=1)
    bent = gain >= 0
    if bent.any():
        step[bent] = _damped(safe[bent], safe[bent], damping[bent], gradient[bent], held[bent])
        gain[bent] = (gradient[bent] * step[bent]).sum(axis=1)
    return step, gain


def _damped(matrix: Array, scale: Array, damping: Array, gradient: Array, held: npt.NDArray[np.bool_]) -> Array:
    """-matrix⁻¹·gradient with a ridge on the diagonal and the held coordinates left out."""
    matrix = np.where(held[:, :, None] | held[:, None, :], 0.0, matrix)
    diagonal = np.einsum("rpp->rp", scale)
    ridge = 1e-13 * diagonal.max(axis=1, keepdims=True) + 1e-30
    every = np.arange(matrix.shape[1])
    matrix[:, every, every] += np.where(held, 1.0, damping[:, None] * 1e-3 * diagonal + ridge)
    return -np.linalg.solve(matrix, gradient[:, :, None])[:, :, 0]
