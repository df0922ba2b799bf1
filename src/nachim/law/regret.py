"""What following a law for learning rate and batch costs, on the very runs of a grid.

The regret of a law in a cell, one (x, D) of the grid, is

    100·(loss of the run nearest to what the law advises / loss of the cell's best run - 1)   percent,

nearest in the plane of log learning rate and log batch (and of whatever else was swept). It needs no model of the loss;
it is never negative, it counts the luck of the best run, and it moves in steps of the grid. Beside it stands the loss
interpolated linearly between the runs where the advice lies among them, which does not step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.law.forms import FLOPS_PER_UNIT, Array
from nachim.law.hyper import Hyper, fit_without
from nachim.law.sweep import Sweep
from nachim.law.transfer import POWER_LINES_BATCH, PUBLISHED

STEPLAW_NEAR = 0.0025
"""Runs within this excess of their cell's best are what StepLaw fits (arXiv 2503.04715 section 3)."""


@dataclass(frozen=True)
class Regret:
    """Regret in percent over cells, (G,): on the `nearest` run, and `interpolated` (NaN outside the runs); `outside`
    is how many pieces of advice lie outside the values swept in their cell."""

    nearest: Array
    interpolated: Array
    outside: int

    @property
    def mean(self) -> float:
        """Mean regret on the nearest run, in percent."""
        return float(self.nearest.mean())

    @property
    def worst(self) -> float:
        """Greatest regret on the nearest run, in percent."""
        return float(self.nearest.max())


def grid_regret(sweep: Sweep, advised: Array, cells: npt.NDArray[np.intp] | None = None) -> Regret:
    """Regret of `advised` logs, one row (k,) for each of `cells` (by default all), on the runs of `sweep`."""
    cells = np.arange(len(sweep.cells)) if cells is None else cells
    nearest, between, outside = np.empty(len(cells)), np.empty(len(cells)), 0
    for row, (number, want) in enumerate(zip(cells, advised, strict=True)):
        here = sweep.cell == number
        z, excess = sweep.z[here], sweep.excess[here]
        nearest[row] = excess[((z - want) ** 2).sum(axis=1).argmin()]
        between[row] = _between(z, excess, want)
        outside += bool(((want < z.min(axis=0)) | (want > z.max(axis=0))).any())
    return Regret(100 * np.expm1(nearest), 100 * np.expm1(between), outside)


def _between(z: Array, excess: Array, want: Array) -> float:
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import QhullError

    varied = np.ptp(z, axis=0) > 0
    points, place = np.unique(z[:, varied], axis=0, return_inverse=True)
    values = np.bincount(place.ravel(), excess) / np.bincount(place.ravel())
    if varied.sum() == 1:
        return float(np.interp(want[varied][0], points[:, 0], values, left=np.nan, right=np.nan))
    try:
        return float(LinearNDInterpolator(points, values)(want[varied])[0])
    except QhullError:
        return float("nan")


def steplaw_recipe(sweep: Sweep, cells: Array) -> Array:
    """Advice by StepLaw's own recipe, refitted to `sweep`: least squares of log learning rate on log x and log D, of
    log batch on log D alone, over the runs within 0.25 % of their cell's best."""
    good = sweep.excess < np.log1p(STEPLAW_NEAR)
    seen, wanted = sweep.design(sweep.x, sweep.tokens), sweep.design(cells[:, 0], cells[:, 1])
    advised = np.empty((len(cells), len(sweep.axes)))
    for place, name in enumerate(sweep.axes):
        used = [0, 2] if name == "batch_tokens" else [0, 1, 2]
        found = np.linalg.lstsq(seen[good][:, used], sweep.z[good, place], rcond=None)[0]
        advised[:, place] = wanted[:, used] @ found
    return advised


def published_advice(name: str, fitted: Hyper) -> Array:
    """Advice (G, k) of a published law on every cell; what that law says nothing of stays at the refitted optimum.

    "power-lines" is B ∝ D^0.383 (arXiv 2505.13738) at the level of the cells' best runs, with the bowl's best learning
    rate at that batch: the paper's own level and rate belong to its parametrisation.
    """
    sweep = fitted.sweep
    x, tokens = sweep.cells.T
    advised = fitted.log_best(x, tokens)
    if name == "power-lines":
        place = sweep.axes.index("batch_tokens")
        winners = np.array([sweep.z[sweep.cell == n][np.argmin(sweep.loss[sweep.cell == n])] for n in range(len(x))])
        level = np.mean(winners[:, place] - POWER_LINES_BATCH * np.log(tokens))
        shift = level + POWER_LINES_BATCH * np.log(tokens) - advised[:, place]
        return _at_shifted(fitted, advised, place, shift)
    laws = PUBLISHED[name]
    params = x * FLOPS_PER_UNIT[sweep.scale] / FLOPS_PER_UNIT["params"]
    for place, axis in enumerate(sweep.axes):
        if axis in laws.laws:
            advised[:, place] = np.log(laws.laws[axis](params, tokens))
    return advised


def _at_shifted(fitted: Hyper, advised: Array, place: int, shift: Array) -> Array:
    """`advised` with one value moved by `shift` (G,), and the learning rate best at it."""
    from scipy.optimize import minimize_scalar

    moved, lr = advised.copy(), fitted.sweep.axes.index("lr")
    moved[:, place] += shift
    for row, (x, tokens) in enumerate(fitted.sweep.cells):

        def cost(step: float, row: int = row, x: float = x, tokens: float = tokens) -> float:
            trial = moved[row].copy()
            trial[lr] += step
            return float(fitted.regret(x, tokens, trial[None])[0])

        moved[row, lr] += minimize_scalar(cost, bounds=(-5.0, 5.0), method="bounded").x
    return moved


def leave_one_out(fitted: Hyper) -> dict[str, Regret] | None:
    """Regret on each cell of the laws fitted without it, ours and StepLaw's recipe; None for two sweeps or fewer."""
    sweep = fitted.sweep
    cells = np.flatnonzero(sweep.swept("lr"))
    if len(cells) < 3:
        return None
    every = np.arange(len(sweep.cells))
    pairs = [_advice_without(fitted, every != number, np.array([number]))[:, 0] for number in cells]
    ours, theirs = np.stack(pairs, axis=1)
    return {"refitted": grid_regret(sweep, ours, cells), "steplaw-recipe": grid_regret(sweep, theirs, cells)}


def leave_largest_out(fitted: Hyper) -> dict[str, Regret] | None:
    """Regret on the cells of the largest scale of laws fitted to the others; None where they hold too few sweeps."""
    sweep = fitted.sweep
    kept = sweep.cells[:, 0] < sweep.cells[:, 0].max()
    if (sweep.swept("lr") & kept).sum() < 2:
        return None
    cells = np.flatnonzero(~kept & sweep.swept("lr"))
    if not len(cells):
        return None
    ours, theirs = _advice_without(fitted, kept, cells)
    return {"refitted": grid_regret(sweep, ours, cells), "steplaw-recipe": grid_regret(sweep, theirs, cells)}


def _advice_without(fitted: Hyper, kept: npt.NDArray[np.bool_], cells: npt.NDArray[np.intp]) -> Array:
    """(2, len(cells), k): what our fit and StepLaw's recipe, seeing the cells `kept` alone, advise on `cells`."""
    wanted = fitted.sweep.cells[cells]
    ours = fit_without(fitted, kept).log_best(wanted[:, 0], wanted[:, 1])
    return np.stack([ours, steplaw_recipe(fitted.sweep.only(kept), wanted)])


def comparison(fitted: Hyper) -> Mapping[str, Regret]:
    """Regret on every cell with a sweep: the refitted laws, StepLaw's recipe refitted, and the published laws."""
    sweep = fitted.sweep
    advice = {
        "refitted": fitted.log_best(*sweep.cells.T),
        "steplaw-recipe": steplaw_recipe(sweep, sweep.cells),
        **{name: published_advice(name, fitted) for name in PUBLISHED},
    }
    if "batch_tokens" in sweep.axes:
        advice["power-lines"] = published_advice("power-lines", fitted)
    cells = np.flatnonzero(sweep.swept("lr"))
    return {name: grid_regret(sweep, advised[cells], cells) for name, advised in advice.items()}
