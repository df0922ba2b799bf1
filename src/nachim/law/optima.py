"""Optima as sets: every way to spend a compute budget that is as good as the best, for all that can be told.

Loss is flat around its optimum: at 1e21 FLOPs on Chinchilla's law a model of half the best size costs 0.6 % of loss.
One best scale is then a number that no experiment can confirm; which scales come within a tolerance of the best loss is
one that experiments can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nachim.law.fit import Fit
from nachim.law.forms import FLOPS_PER_UNIT, Array
from nachim.law.interval import quantiles
from nachim.law.study import Study
from nachim.spec.error import UserError

WITHIN = 0.0025
"""How near to the best loss counts as the best, by default: DeepSeek calls runs within 0.25 % near-optimal
(arXiv 2401.02954 section 3.1)."""
REACH = 14.0
"""How far from the optimum, in log scale, the ends of the range are sought: a factor of a million either way."""
STEP = 0.02
"""Between the points where the curve is evaluated, in log scale; ends are found between points by a straight line."""

Ends = tuple[float, float]


@dataclass(frozen=True)
class Optima:
    """The scales `x` and token counts that come within `within` (relative) of the best loss at compute `flops`.

    `x_range` and `tokens_range` are the set on the chosen law's curve, around its best `x`, `tokens` and `loss`.
    `x_outer` holds the set's lower end in 95 % of all refits and its upper end in as many, over all laws by weight:
    outside it no scale is likely to be as good. `x_inner` lies in the set in 95 % at either end: every scale in it
    is as good as the best, very likely; None where no scale is. Of tokens alike. `by_law` is the set in x on each
    law's own curve, and `exponent` how the best scale grows with compute there, with its 90 % interval.
    """

    flops: float
    within: float
    x: float
    tokens: float
    loss: float
    x_range: Ends
    tokens_range: Ends
    x_outer: Ends
    tokens_outer: Ends
    x_inner: Ends | None
    tokens_inner: Ends | None
    by_law: Mapping[str, Ends]
    exponent: float
    exponent_interval90: Ends


def optima(reading: Study, flops: float, within: float = WITHIN) -> Optima:
    """All near-optimal ways to spend `flops`, on the chosen law, with what refits and other laws leave open.

    A set that is wider than a factor of a million either way ends there. Raises UserError when `flops` or `within`
    is not positive, or `within` not below 1, and when the law splits no compute.
    """
    if not (np.isfinite(flops) and flops > 0):
        raise UserError(f"flops must be a positive number, not {flops}")
    if not 0 < within < 1:
        raise UserError(f"within is {within}: it is a share of the loss, above 0 and below 1 (0.0025 is 0.25 %)")
    product = flops / FLOPS_PER_UNIT[reading.fit.scale]
    own = {name: level_set(one, one.point[None], product, within) for name, one in reading.fits.items()}
    most = max(len(draws) for draws in reading.refits.values())
    redrawn = []
    for name, one in reading.fits.items():
        kept = reading.refits[name][: round(reading.weights[name] * most)]
        if len(kept):
            redrawn.append(level_set(one, kept, product, within))
    low, high = np.concatenate(redrawn, axis=1)[1:]
    low, high = (end[np.isfinite(end)] for end in (low, high))
    best = own[reading.fit.law.name][:, 0]
    if not np.isfinite(best).all():
        raise UserError(f"the {reading.fit.law.name} law has no best scale at {flops:.3g} FLOPs: loss falls to one end")
    x, ends = float(np.exp(best[0])), (float(np.exp(best[1])), float(np.exp(best[2])))
    outer = (quantiles(np.exp(low))[0], quantiles(np.exp(high))[1])
    inner = (quantiles(np.exp(low))[1], quantiles(np.exp(high))[0])
    certain = inner if inner[0] <= inner[1] else None
    return Optima(
        flops=flops,
        within=within,
        x=x,
        tokens=product / x,
        loss=float(reading.fit.predict(x, product / x)),
        x_range=ends,
        tokens_range=_turned(ends, product),
        x_outer=outer,
        tokens_outer=_turned(outer, product),
        x_inner=certain,
        tokens_inner=certain and _turned(certain, product),
        by_law={name: (float(np.exp(found[1, 0])), float(np.exp(found[2, 0]))) for name, found in own.items()},
        exponent=reading.exponents["model"],
        exponent_interval90=reading.exponents_interval90["model"],
    )


def level_set(one: Fit, points: Array, product: float, within: float) -> Array:
    """Log of the best scale and of the lowest and highest scale within `within` of its loss, (3, m), on the curves of
    the law's `points` (m, size) along x·D = `product`. NaN where a curve has no minimum within REACH."""
    units = one.sample.units
    centre = np.log(product) / 2 + (np.log(units.x) - np.log(units.tokens)) / 2
    log_x = np.arange(centre - REACH, centre + REACH, STEP)
    curve = one.law.value(points, log_x - np.log(units.x), np.log(product) - log_x - np.log(units.tokens))
    lowest = curve.argmin(axis=1)
    inside = (lowest > 0) & (lowest < len(log_x) - 1)
    place = np.clip(lowest, 1, len(log_x) - 2)
    left, middle, right = (np.take_along_axis(curve, (place + n)[:, None], axis=1)[:, 0] for n in (-1, 0, 1))
    # The vertex of the parabola through three points 0.02 apart: a law is smooth, so it is exact to 1e-4 of x.
    bend = np.where(inside, left - 2 * middle + right, 1.0) + 1e-300
    best = log_x[place] + STEP * (left - right) / (2 * bend)
    bottom = middle - (left - right) ** 2 / (8 * bend)
    over = curve - (bottom + np.log1p(within))[:, None]
    ends = [_crossing(log_x, over, place, way) for way in (-1, 1)]
    return np.where(inside, np.stack([best, *ends]), np.nan)


def _crossing(log_x: Array, over: Array, start: Array, way: int) -> Array:
    """Where each curve `over` (m, n) first rises above 0 from `start` (m,) on, downwards or upwards; else the end."""
    number = np.arange(len(log_x))
    beyond = (over > 0) & ((number - start[:, None]) * way > 0)
    found = beyond.any(axis=1)
    after = np.where(way > 0, beyond.argmax(axis=1), len(log_x) - 1 - beyond[:, ::-1].argmax(axis=1))
    after = np.where(found, after, len(log_x) - 1 if way > 0 else 0)
    before = np.clip(after - way, 0, len(log_x) - 1)
    high = np.take_along_axis(over, after[:, None], axis=1)[:, 0]
    low = np.take_along_axis(over, before[:, None], axis=1)[:, 0]
    share = np.where(found & (high > low), np.clip(-low / np.where(high > low, high - low, 1.0), 0, 1), 1.0)
    return np.asarray(log_x[before] + share * (log_x[after] - log_x[before]))


def _turned(x_ends: Ends, product: float) -> Ends:
    """The token counts that spend the budget at either end of a range of scales, the fewest first."""
    return product / x_ends[1], product / x_ends[0]
