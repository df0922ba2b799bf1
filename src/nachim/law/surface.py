"""How the baseline's loss falls with compute: its law where its runs determine one, else a plane in logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.law.coupled import Chinchilla, Coupled
from nachim.law.fit import sample_of, shortfall
from nachim.law.forms import Array, Law, Sample, Units
from nachim.law.interval import noise_sd
from nachim.law.observe import Observations
from nachim.law.pairs import Runs
from nachim.law.solve import minimise
from nachim.spec.error import UserError

STARTS = 4
WIDE = 0.1
CURVED = 5
"""Budgets from which on the plane is bent along compute."""


@dataclass(frozen=True, eq=False)
class Surface:
    """Log loss over (log x, log D): `expand(point, log_x, log_tokens)` is its value (n,) and its slope (size, n) in the
    point, which has a `start` and bounds.

    `share` is how much of a growth of compute goes into x along the expansion path, in logs; `offset(log_x,
    log_tokens)` how far runs lie from that path, log(D/x) - log(D*/x*), zeros where no path is known.
    """

    name: str
    expand: Callable[[Array, Array, Array], tuple[Array, Array]]
    start: Array
    low: Array
    high: Array
    share: float
    offset: Callable[[Array, Array], Array]


def surface_of(runs: Runs) -> Surface:
    """The surface of the baseline's runs. Raises UserError when all of them cost the same."""
    base = ~runs.idea
    if np.ptp(runs.log_flops[base]) < np.log(1.1):
        raise UserError(
            "the baseline's runs all have one compute budget, so how its loss falls with compute is not known: runs at "
            "2 or more budgets are needed"
        )
    obs = Observations(
        tokens=np.exp(runs.log_tokens),
        loss=np.exp(runs.log_loss),
        flops_per_token=np.exp(runs.log_x),
        weight=np.where(base, runs.weight, 0.0),
    )
    sample = sample_of(obs, "flops_per_token")
    laws = [law for law in (Chinchilla(), Coupled()) if not shortfall(sample, law)]
    if not laws:
        return _plane(runs, base)
    points = [_squares(law, sample) for law in laws]
    off = [
        noise_sd((sample.log_loss - law.value(point, *sample.inputs))[base], law.size)
        for law, point in zip(laws, points, strict=True)
    ]
    best = int(np.argmin(off))
    return _by_law(laws[best], points[best], sample.units)


def _squares(law: Law, sample: Sample) -> Array:
    """The law by (nearly) least squares, as the comparison itself weighs its runs."""
    starts = law.starts(sample, sample.weight, STARTS)
    rows = (np.broadcast_to(column, (len(starts), len(column))) for column in (sample.log_loss, sample.weight))
    points, costs = minimise(law, sample.inputs, *rows, starts, delta=WIDE, steps=25)
    best: Array = points[costs.argmin()]
    return best


def _by_law(law: Law, point: Array, units: Units) -> Surface:
    log_x0, log_d0, log_loss0 = np.log(units.x), np.log(units.tokens), np.log(units.loss)
    theta = law.coefficients(point, units)

    def expand(z: Array, log_x: Array, log_tokens: Array) -> tuple[Array, Array]:
        value, slope, _ = law.expand(z, log_x - log_x0, log_tokens - log_d0)
        return log_loss0 + value, slope

    def offset(log_x: Array, log_tokens: Array) -> Array:
        x, tokens = law.allocation(theta, np.exp(log_x + log_tokens), "flops_per_token")
        return np.asarray((log_tokens - log_x) - (np.log(tokens) - np.log(x)))

    return Surface(
        name=law.name,
        expand=expand,
        start=point,
        low=law.low,
        high=law.high,
        share=float(law.exponents(theta)[0]),
        offset=offset,
    )


def _plane(runs: Runs, base: npt.NDArray[np.bool_]) -> Surface:
    """Log loss linear in log x and log D, and quadratic in log C where there are budgets enough.

    The expansion path is the one that the runs took: the regression of log x on log C.
    """
    x0, d0 = runs.log_x[base].mean(), runs.log_tokens[base].mean()
    flops = np.sort(runs.log_flops[base])
    bent = 1 + (np.diff(flops) > np.log(1.1)).sum() >= CURVED

    def columns(log_x: Array, log_tokens: Array) -> Array:
        x, d = log_x - x0, log_tokens - d0
        return np.stack([np.ones_like(x), x, d, *([(x + d) ** 2] if bent else [])])

    def expand(z: Array, log_x: Array, log_tokens: Array) -> tuple[Array, Array]:
        slope = columns(log_x, log_tokens)
        return z @ slope, slope

    design = columns(runs.log_x[base], runs.log_tokens[base])
    start = np.linalg.lstsq(design.T, runs.log_loss[base], rcond=1e-6)[0]
    far = np.full(len(start), 100.0)
    return Surface(
        name="plane",
        expand=expand,
        start=start,
        low=-far,
        high=far,
        share=float(np.polyfit(runs.log_flops[base], runs.log_x[base], 1)[0]),
        offset=lambda log_x, log_tokens: np.zeros_like(log_x),
    )
