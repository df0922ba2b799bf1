"""Rows of a table that a reader should look at before the law does, each with its reason. Nothing is left out here.

A run is only compared with runs of its own setting: the same corpus (`group`, where a group spans several scales) and
the same value of everything else that a law of the library reads. Where data repeat, loss may honestly rise, and
general laws do not describe it: such runs are compared with equal ones alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.special import stdtrit

from nachim.law.fit import fit
from nachim.law.forms import Array, Scale
from nachim.law.interval import MAD
from nachim.law.laws import ALL, LAWS
from nachim.law.observe import Observations
from nachim.spec.error import UserError

Kind = Literal["duplicate", "diverged", "under-tuned", "outlier"]
Rows = npt.NDArray[np.intp]

SLACK = 0.0025
"""A run within 0.25 % of the best is as good as tuned (arXiv 2401.02954 section 3.1); less is never flagged."""
FALSE_ALARMS = 0.05
"""Flags that normal noise would raise in a whole table, on average: the threshold grows with its rows."""
NEIGHBOURS = 6
EFFICIENCY = 0.37
"""Of its rows, the share that a standard deviation would need to be as sure as the median absolute deviation
(Rousseeuw and Croux 1993, doi 10.1080/01621459.1993.10476408)."""
DEARER = 10.0
"""A run has diverged when most runs of at most a tenth of its compute, none of them larger or longer, are better."""
CONVENTIONS = {2.0: "2·N·D, the forward pass alone", 6.0: "6·N·D", 8.0: "8·N·D, activations computed twice"}
APART, TIGHT = np.log(1.2), np.log(1.05)
"""Two conventions lie further apart than the first; the rows of one lie within the second."""


@dataclass(frozen=True)
class Flag:
    """Why a row, counted from 1, deserves a look: its loss is `percent` above what `reason` compares it with."""

    row: int
    kind: Kind
    percent: float
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.kind}, {self.reason}"


def find(obs: Observations, scale: Scale | None = None) -> tuple[Flag, ...]:
    """Duplicated, diverged and under-tuned runs and outliers, by row; at most one flag a row, rows of weight 0 none."""
    scale = scale or obs.scales[0]
    flags = {flag.row - 1: flag for flag in _duplicates(obs)}
    for rows in _settings(obs, scale):
        rows = np.array([row for row in rows if row not in flags and obs.weight[row] > 0], dtype=np.intp)
        if len(rows) > 1:
            flags |= {flag.row - 1: flag for flag in _within(obs, scale, rows)}
    return tuple(flags[row] for row in sorted(flags))


def without(obs: Observations, flags: Sequence[Flag]) -> Observations:
    """The same table with weight 0 on the flagged rows, so that rows keep their numbers."""
    weight = obs.weight.copy()
    weight[[flag.row - 1 for flag in flags]] = 0.0
    return dataclasses.replace(obs, weight=weight)


def _duplicates(obs: Observations) -> Iterator[Flag]:
    first: dict[tuple[object, ...], int] = {}
    for row, cells in enumerate(zip(*(column.tolist() for column in obs.columns().values()), strict=True)):
        if (earlier := first.setdefault(cells, row)) != row:
            yield Flag(
                row + 1, "duplicate", 0.0, f"the same as row {earlier + 1} in every column: that run counts twice"
            )


def _settings(obs: Observations, scale: Scale) -> list[Rows]:
    """Rows that one surface over scale and tokens should describe, setting by setting."""
    log_x = np.log(obs.x(scale))
    read = sorted({name for law in ALL.values() for name in law.inputs} & obs.extra.keys())
    label = np.zeros((len(obs), 1 + len(read)))
    if obs.group is not None:
        names, group = np.unique(obs.group, return_inverse=True)
        if any(np.ptp(log_x[group == number]) > 0.01 for number in range(len(names))):
            label[:, 0] = group
    for place, name in enumerate(read, 1):
        column = obs.extra[name]
        if name == "unique_tokens":
            column = np.where(column >= obs.tokens * 0.99, 0.0, column)
        label[:, place] = np.nan_to_num(column, nan=-1.0)
    _, setting = np.unique(label, axis=0, return_inverse=True)
    return [np.flatnonzero(setting.ravel() == number) for number in range(setting.max() + 1)]


def _within(obs: Observations, scale: Scale, rows: Rows) -> Iterator[Flag]:
    """Flags among the rows of one setting."""
    log_x, log_tokens, log_loss = np.log(obs.x(scale)[rows]), np.log(obs.tokens[rows]), np.log(obs.loss[rows])
    fresh = ~_repeats(obs, rows)
    best = _best(log_x, log_tokens, log_loss)
    # the noise of a table is that of its best run at each place: the others may be badly tuned
    chosen = np.unique(best)
    residual, size = _residuals(obs, scale, rows, chosen) if fresh.all() else (None, 0)
    noise = SLACK if residual is None else _spread(residual[chosen], size)
    limit = float(stdtrit(max(2.0, EFFICIENCY * (len(chosen) - size)), 1 - FALSE_ALARMS / (2 * len(rows))))
    slack = max(SLACK, limit * noise * np.sqrt(2))
    found: dict[int, Flag] = {}
    if _tuned_apart(obs, rows):
        found |= _behind_the_best(rows, log_loss, best, max(SLACK, 3 * noise))
    left = np.array([place for place in np.flatnonzero(fresh) if place not in found], dtype=np.intp)
    found |= _out_of_order(rows, left, _alike(obs, log_x, rows), log_tokens, log_loss, slack)
    left = np.array([place for place in left if place not in found], dtype=np.intp)
    if residual is not None:
        found |= _outliers(rows, left, np.stack([log_x, log_tokens], axis=1), residual, size, limit)
    for place, flag in found.items():
        cheaper = (log_x <= log_x[place] + 0.01) & (log_tokens <= log_tokens[place] + 0.01)
        cheaper &= log_x + log_tokens <= log_x[place] + log_tokens[place] - np.log(DEARER)
        better = cheaper & (log_loss < log_loss[place] - slack)
        if cheaper.any() and 2 * better.sum() > cheaper.sum():
            by = float(100 * np.expm1(log_loss[place] - np.median(log_loss[cheaper])))
            reason = f"its loss is {by:.2g} % above the median of runs that had at most a tenth of its compute"
            flag = Flag(flag.row, "diverged", by, reason)
        yield flag


def _best(log_x: Array, log_tokens: Array, log_loss: Array) -> Rows:
    """For each run the place of the best one of the same scale and tokens (within 1 %)."""
    cell = np.round(np.stack([log_x, log_tokens], axis=1) / 0.01)
    _, number = np.unique(cell, axis=0, return_inverse=True)
    number = number.ravel()
    order = np.argsort(log_loss, kind="stable")
    first = np.full(number.max() + 1, -1, dtype=np.intp)
    for place in order[::-1]:
        first[number[place]] = place
    return first[number]


def _residuals(obs: Observations, scale: Scale, rows: Rows, best: Rows) -> tuple[Array | None, int]:
    """Log residuals (n,) of all `rows` from the richest general law that the best runs determine with room to spare,
    and its number of coefficients."""
    kept = obs.subset(rows[best])
    for law in sorted(LAWS.values(), key=lambda each: -each.size):
        if len(best) < 2 * law.size:
            continue
        try:
            found = fit(kept, law, scale)
        except UserError:
            continue
        predicted = found.predict(x=obs.x(scale)[rows], tokens=obs.tokens[rows])
        return np.asarray(np.log(obs.loss[rows] / predicted)), law.size
    return None, 0


def _spread(residual: Array, size: int) -> float:
    """Robust standard deviation; as many residuals as there are coefficients may be nil, and the least do not count."""
    return float(MAD * np.median(np.sort(np.abs(residual - np.median(residual)))[size:]))


def _tuned_apart(obs: Observations, rows: Rows) -> bool:
    columns = (obs.lr, obs.batch_tokens)
    return any(column is not None and np.ptp(np.log(column[rows])) > 0.01 for column in columns)


def _repeats(obs: Observations, rows: Rows) -> npt.NDArray[np.bool_]:
    unique = obs.extra.get("unique_tokens")
    return np.zeros(len(rows), dtype=bool) if unique is None else unique[rows] < 0.99 * obs.tokens[rows]


def _behind_the_best(rows: Rows, log_loss: Array, best: Rows, slack: float) -> dict[int, Flag]:
    """Runs with other learning rates or batches than the best one of the same scale and tokens."""
    found = {}
    for place in np.flatnonzero(log_loss > log_loss[best] + slack):
        by = float(100 * np.expm1(log_loss[place] - log_loss[best[place]]))
        reason = f"its loss is {by:.2g} % above that of row {rows[best[place]] + 1}, of the same scale and tokens"
        found[int(place)] = Flag(int(rows[place]) + 1, "under-tuned", by, reason)
    return found


def _alike(obs: Observations, log_x: Array, rows: Rows) -> Rows:
    """A number for each shape: runs of one scale (within 1 %) and one `group`."""
    names = np.zeros(len(rows), dtype=np.intp)
    if obs.group is not None:
        _, names = np.unique(obs.group[rows], return_inverse=True)
    _, shape = np.unique(np.stack([np.round(log_x / 0.01), names.ravel()]), axis=1, return_inverse=True)
    return shape.ravel()


def _out_of_order(
    rows: Rows, left: Rows, shape: Rows, log_tokens: Array, log_loss: Array, slack: float
) -> dict[int, Flag]:
    """Runs whose loss rises with tokens at one `shape`. Of two that disagree, the one that disagrees with more others
    is flagged; of two that disagree with no other, the longer one."""
    tokens, loss = log_tokens[left], log_loss[left]
    clash = (shape[left][:, None] == shape[left][None]) & (tokens[:, None] > tokens[None] + 0.01)
    clash &= loss[:, None] > loss[None] + slack
    found = {}
    while clash.any():
        above, below = clash.sum(axis=1), clash.sum(axis=0)
        worst = int(np.argmax(above + below + 0.5 * (above > 0)))
        others = np.flatnonzero(clash[worst] if above[worst] >= below[worst] else clash[:, worst])
        other = int(others[np.argmin(loss[others]) if above[worst] >= below[worst] else np.argmax(loss[others])])
        by = float(100 * np.expm1(loss[worst] - loss[other]))
        kind: Kind = "under-tuned" if by > 0 else "outlier"
        side, turn = ("above", "fewer") if by > 0 else ("below", "more")
        times = np.exp(abs(tokens[worst] - tokens[other]))
        reason = (
            f"its loss is {abs(by):.2g} % {side} that of row {rows[left[other]] + 1}, of the same scale and "
            f"{times:.2g}x {turn} tokens"
        )
        found[int(left[worst])] = Flag(int(rows[left[worst]]) + 1, kind, by, reason)
        clash[worst], clash[:, worst] = False, False
    return found


def _outliers(rows: Rows, left: Rows, where: Array, residual: Array, size: int, limit: float) -> dict[int, Flag]:
    """Runs off the law that are also off their neighbours: a law that bends wrongly is off by as much nearby."""
    if len(left) <= max(NEIGHBOURS, size):
        return {}
    off = residual[left] - np.median(residual[left])
    place = where[left] / np.maximum(where[left].std(axis=0), 1e-9)
    _, near = cKDTree(place).query(place, NEIGHBOURS + 1)
    apart = off - np.median(off[near[:, 1:]], axis=1)
    least = max(SLACK, limit * _spread(off, size)), max(SLACK, limit * _spread(apart, size))
    found = {}
    for number in np.flatnonzero((np.abs(off) > least[0]) & (np.abs(apart) > least[1]) & (off * apart > 0)):
        by = float(100 * np.expm1(off[number]))
        side = "above" if by > 0 else "below"
        reason = (
            f"its loss is {abs(by):.2g} % {side} a law through the others, and {abs(100 * apart[number]):.2g} % {side} "
            f"where its {NEIGHBOURS} nearest runs would put it"
        )
        found[int(left[number])] = Flag(int(rows[left[number]]) + 1, "outlier", by, reason)
    return found


def conventions(obs: Observations) -> list[str]:
    """A sentence for budgets that were not counted the same way in every row, or that count the forward pass alone."""
    scale = obs.scales[0]
    per_token = obs.flops / (obs.x(scale) * obs.tokens)
    if scale == "flops_per_token":
        per_token = 6 * per_token  # M·D takes the place of 6·N·D
    logs = np.log(per_token)
    order = np.argsort(logs)
    parts = np.split(order, np.flatnonzero(np.diff(logs[order]) > APART) + 1)
    if any(np.ptp(logs[part]) > TIGHT for part in parts):
        return []
    named = [_convention(float(np.exp(np.median(logs[part])))) for part in parts]
    if len(parts) == 1:
        forward = named[0].startswith("2·")
        return (
            [f"all budgets in 'flops' are {named[0]}: multiply them by 3, or leave the column out"] if forward else []
        )
    fewest = min(parts, key=len)
    listed = ", ".join(str(row + 1) for row in sorted(fewest)[:5]) + (", ..." if len(fewest) > 5 else "")
    said = " and ".join(f"{len(part)} as {name}" for part, name in zip(parts, named, strict=True))
    rows = f"row{'s' if len(fewest) > 1 else ''} {listed}"
    return [f"'flops' counts {said} (see {rows}): bring all rows to one convention, or leave the column out"]


def _convention(per_token: float) -> str:
    near = min(CONVENTIONS, key=lambda each: abs(np.log(per_token / each)))
    return CONVENTIONS[near] if abs(np.log(per_token / near)) < 2 * TIGHT else f"{per_token:.2g}·N·D"


def inside(obs: Observations, flops: float) -> str | None:
    """A sentence when a target of `flops` lies inside the fitted runs; None when it is an extrapolation."""
    used = obs.flops[obs.weight > 0]
    if flops > used.max():
        return None
    return (
        f"the target of {flops:.2g} FLOPs lies inside the fitted runs ({used.min():.2g} to {used.max():.2g} FLOPs): "
        f"the law interpolates there; a forecast asks for more than {used.max():.2g}"
    )


def seen(obs: Observations, unseen: Observations) -> list[str]:
    """Sentences for runs held out that are fitted too, or that no forecast is needed for."""
    shared = ("tokens", "loss", *(name for name in obs.scales if name in unseen.scales))
    known = set(zip(*(obs.columns()[name].tolist() for name in shared), strict=True))
    rows = [
        row + 1
        for row, cells in enumerate(zip(*(unseen.columns()[name].tolist() for name in shared), strict=True))
        if cells in known
    ]
    found = []
    if rows:
        found.append(
            f"{len(rows)} of the runs held out are fitted too (row {rows[0]} first): leave them out of one table"
        )
    top = float(obs.flops[obs.weight > 0].max())
    if (within := int((unseen.flops <= top).sum())) and not rows:
        found.append(
            f"{within} of {len(unseen)} runs held out lie inside the fitted budgets (up to {top:.2g} FLOPs): their "
            f"error is that of interpolation; hold out runs above {top:.2g} FLOPs to test a forecast"
        )
    return found
