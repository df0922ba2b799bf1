"""Runs that differ in learning rate, batch and their like: sorted into cells of one (x, D), checked, and normalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.law.bowl import Cells, near_weight
from nachim.law.forms import FLOPS_PER_UNIT, Array, Scale
from nachim.law.observe import Observations
from nachim.law.transfer import FEWEST, PUBLISHED
from nachim.spec.error import UserError, nearest

TUNED = ("lr", "batch_tokens", "weight_decay", "warmup")
"""What can be tuned: columns of the table. Weight decay is the optimizer's coefficient lambda; warm-up is in tokens."""
SPELT = {"lr": "learning rate", "batch_tokens": "batch", "weight_decay": "weight decay", "warmup": "warm-up"}
DIVERGED = 1.5
"""A run of more than this many times the best loss of its cell diverged, or never learned."""
ALIKE = 1e-3
"""Values this close in ratio are one value: grids are printed with four digits."""
SAME_CELL = 0.02
"""Scales and token counts this close in ratio are of one cell: runs end after whole steps of their own batch."""
SEQUENCES = 100.0
"""Batches this many times below the published law's tokens, or more, are counts of sequences."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """Runs in cells of one (x, D). `x`, `tokens`, `loss` (n,); `z` (n, k) logs of what is tuned, `axes` its k names;
    `cell` (n,) which of `cells` (G, 2), rows of (x, D), a run is of; `middle` what is subtracted before a fit, mean
    logs of what is tuned (k,) and of x and D (2,); `held` the tuned columns that do not vary within a cell; `left_out`
    how many runs were not taken, by reason."""

    scale: Scale
    x: Array
    tokens: Array
    loss: Array
    z: Array
    axes: tuple[str, ...]
    cell: npt.NDArray[np.intp]
    cells: Array
    middle: tuple[Array, Array]
    held: Mapping[str, Array]
    left_out: Mapping[str, int]

    @property
    def best(self) -> Array:
        """Least log loss of each cell, (G,)."""
        least = np.full(len(self.cells), np.inf)
        np.minimum.at(least, self.cell, np.log(self.loss))
        return least

    @property
    def excess(self) -> Array:
        """Log loss of each run over its cell's best, (n,)."""
        return np.asarray(np.log(self.loss) - self.best[self.cell])

    def design(self, x: Array | float, tokens: Array | float) -> Array:
        """1, log x and log D, normalised, (n, 3)."""
        x, tokens = np.broadcast_arrays(np.log(np.atleast_1d(x)), np.log(np.atleast_1d(tokens)))
        middle = self.middle[1]
        return np.stack([np.ones(len(x)), x - middle[0], tokens - middle[1]], axis=1)

    def runs(self) -> Cells:
        """The runs as a bowl is fitted to them."""
        return Cells(
            z=self.z - self.middle[0],
            design=self.design(self.x, self.tokens),
            y=np.log(self.loss),
            cell=self.cell,
            weight=near_weight(self.excess),
        )

    def at_edge(self, axis: str) -> npt.NDArray[np.bool_]:
        """Whether a cell's best value of `axis` is the least or the greatest swept there, (G,)."""
        column = self.z[:, self.axes.index(axis)]
        found = np.zeros(len(self.cells), bool)
        for number, best in enumerate(self.best):
            here = column[self.cell == number]
            if np.ptp(here) > ALIKE:
                place = here[np.argmin(np.log(self.loss[self.cell == number]) - best)]
                found[number] = min(place - here.min(), here.max() - place) < ALIKE
        return found

    def swept(self, axis: str) -> npt.NDArray[np.bool_]:
        """Whether `axis` takes at least three values in a cell, (G,)."""
        column = self.z[:, self.axes.index(axis)]
        return np.array([_distinct(column[self.cell == number]) >= FEWEST for number in range(len(self.cells))])

    def only(self, kept: npt.NDArray[np.bool_]) -> Sweep:
        """The cells where `kept` (G,) is true."""
        rows = kept[self.cell]
        return Sweep(
            scale=self.scale,
            x=self.x[rows],
            tokens=self.tokens[rows],
            loss=self.loss[rows],
            z=self.z[rows],
            axes=self.axes,
            cell=np.unique(self.cell[rows], return_inverse=True)[1],
            cells=self.cells[kept],
            middle=self.middle,
            held={name: column[rows] for name, column in self.held.items()},
            left_out=self.left_out,
        )


def sweep_of(obs: Observations, scale: Scale | None = None, unfinished: int = 0) -> Sweep:
    """Sort runs into cells. `unfinished` runs had no finite loss, and were left out before.

    Raises UserError when a column is missing, batches are no tokens, or no cell sweeps the learning rate.
    """
    scale = scale or ("params" if "params" in obs.scales else obs.scales[0])
    columns = {name: np.asarray(obs.columns()[name], float) for name in TUNED if name in obs.columns()}
    for name in ("lr", "batch_tokens"):
        if name not in columns:
            raise UserError(f"a sweep needs a column {name!r} ({SPELT[name]}){nearest(name, obs.columns())}")
    _check_batch(obs, scale, columns["batch_tokens"])
    columns = {name: column for name, column in columns.items() if name in TUNED[:2] or _counts(column)}
    usable = np.all([np.isfinite(column) & (column > 0) for column in columns.values()], axis=0)
    if not usable.any():
        raise UserError(f"no run has a positive number in all of {', '.join(columns)}: logarithms of them are fitted")
    cells, cell = _cells(obs.x(scale), obs.tokens)
    least = np.full(len(cells), np.inf)
    np.minimum.at(least, cell[usable], obs.loss[usable])
    kept = usable & (obs.loss <= DIVERGED * least[cell])
    left_out = {"diverged": unfinished + int((usable & ~kept).sum()), "not positive": int((~usable).sum())}
    cells, cell = _cells(obs.x(scale)[kept], obs.tokens[kept])
    logs = {name: np.log(column[kept]) for name, column in columns.items()}
    axes = tuple(name for name in TUNED if name in logs and _varies(logs[name], cell))
    if "lr" not in axes:
        raise UserError(_no_sweep(logs["lr"], cells, cell))
    z = np.stack([logs[name] for name in axes], axis=1)
    return Sweep(
        scale=scale,
        x=obs.x(scale)[kept],
        tokens=obs.tokens[kept],
        loss=obs.loss[kept],
        z=z,
        axes=axes,
        cell=cell,
        cells=cells,
        middle=(z.mean(axis=0), np.log(np.stack([obs.x(scale), obs.tokens])[:, kept]).mean(axis=1)),
        held={name: np.exp(column) for name, column in logs.items() if name not in axes},
        left_out=left_out,
    )


def _counts(column: Array) -> bool:
    """Whether an optional column can be fitted, or at least says what was held: positive in most rows."""
    return bool(np.mean(np.isfinite(column) & (column > 0)) > 0.5)


def _cells(x: Array, tokens: Array) -> tuple[Array, npt.NDArray[np.intp]]:
    """Rows of (x, D), geometric means over the runs of a scale and of a cell, and which row a run is of."""
    scale = _clusters(np.log(x))
    data = np.zeros(len(x), np.intp)
    for number in range(scale.max() + 1):
        data[scale == number] = _clusters(np.log(tokens[scale == number]))
    _, cell = np.unique(np.stack([scale, data], axis=1), axis=0, return_inverse=True)
    cell = cell.ravel()
    log_x = (np.bincount(scale, np.log(x)) / np.bincount(scale))[scale]
    _, first = np.unique(cell, return_index=True)
    log_tokens = np.bincount(cell, np.log(tokens)) / np.bincount(cell)
    return np.exp(np.stack([log_x[first], log_tokens], axis=1)), cell


def _clusters(logs: Array) -> npt.NDArray[np.intp]:
    order = np.argsort(logs)
    label = np.zeros(len(logs), np.intp)
    label[order[1:]] = np.cumsum(np.diff(logs[order]) > SAME_CELL)
    return label


def _varies(column: Array, cell: npt.NDArray[np.intp]) -> bool:
    return any(_distinct(column[cell == number]) >= FEWEST for number in range(cell.max() + 1))


def _distinct(logs: Array) -> int:
    return int((np.diff(np.sort(logs)) > ALIKE).sum()) + 1 if len(logs) else 0


def _no_sweep(lr: Array, cells: Array, cell: npt.NDArray[np.intp]) -> str:
    most = max(_distinct(lr[cell == number]) for number in range(len(cells)))
    if _distinct(lr) == 1:
        return (
            f"every run has the learning rate {np.exp(lr[0]):.4g}: the best one is found only among runs of at least "
            f"{FEWEST} rates, at each of two or more (scale, tokens)"
        )
    return (
        f"the learning rate takes at most {most} values among runs of one scale and tokens, over {len(cells)} of them: "
        f"sweep at least {FEWEST} rates at each of two or more (scale, tokens)"
    )


def _check_batch(obs: Observations, scale: Scale, batch: Array) -> None:
    fine = np.isfinite(batch) & (batch > 0)
    if (over := fine & (batch > obs.tokens)).any():
        row = int(np.argmax(over))
        raise UserError(
            f"row {row + 1}: a batch of {batch[row]:,.0f} tokens is more than the {obs.tokens[row]:,.0f} tokens of the "
            "whole run: 'tokens' is what a run trains on, 'batch_tokens' what one step does, both in tokens"
        )
    params = obs.x(scale) * FLOPS_PER_UNIT[scale] / FLOPS_PER_UNIT["params"]
    expected = PUBLISHED["steplaw"].batch_tokens(params, obs.tokens)
    small = float(np.exp(np.mean(np.log((batch / expected)[fine])))) if fine.any() else 1.0
    if small < 1 / SEQUENCES:
        typical = float(np.exp(np.mean(np.log(batch[fine]))))
        raise UserError(
            f"'batch_tokens' is about {typical:,.0f}, {1 / small:,.0f} times below what runs of such length take: it "
            "looks like sequences; multiply by the sequence length to have tokens"
        )
