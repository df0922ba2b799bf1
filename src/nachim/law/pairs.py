"""Which run of one ladder belongs to which run of another, and what they have in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import optimize

from nachim.law.forms import Array
from nachim.law.observe import Observations
from nachim.spec.error import UserError

NEAR = 0.25
"""Runs whose scale and tokens each agree within this (in logs) can be a pair: an idea may add a few parameters."""
FEWEST_CHAINS = 2
EXACTLY = 0.05
"""C / (N·D) of one ladder this near to 2, in logs, and of the other to 6, is no idea: 2·N·D has no backward pass."""

Index = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs that count of two ladders, the baseline's first. The scale x is C / D: what an idea costs counts.

    `label` and `seed` are None where the ladders do not both have them.
    """

    log_x: Array
    log_tokens: Array
    log_loss: Array
    weight: Array
    idea: npt.NDArray[np.bool_]
    label: npt.NDArray[np.str_] | None
    seed: Array | None

    @property
    def log_flops(self) -> Array:
        """Log of what each run costs, (n,)."""
        return self.log_x + self.log_tokens

    @cached_property
    def span(self) -> tuple[float, float]:
        """The range of compute, FLOP, in which both ladders have runs. Raises UserError when there is none."""
        base, idea = (np.exp(self.log_flops[self.idea == side]) for side in (False, True))
        low, high = max(base.min(), idea.min()), min(base.max(), idea.max())
        if low > high * 1.1:
            raise UserError(
                f"the ladders do not overlap: the baseline's runs cost {base.min():.2g} to {base.max():.2g} FLOP, the "
                f"idea's {idea.min():.2g} to {idea.max():.2g}; run both at the same budgets"
            )
        return float(min(low, high)), float(max(low, high))


@dataclass(frozen=True, eq=False)
class Rows:
    """How runs enter a fit: each pair (`base`, `idea`) as its difference and its mean, each of `single` alone.

    `cluster` (2 · pairs + singles,) labels rows that share noise; `chains` tells whether those are chains of runs,
    rather than runs taken as independent for want of a label.
    """

    base: Index
    idea: Index
    single: Index
    cluster: Index
    chains: bool

    def of(self, values: Array) -> Array:
        """Rows of a column (n, ...) of the runs: differences, means, singles."""
        a, b = values[self.base], values[self.idea]
        return np.concatenate([b - a, (a + b) / 2, values[self.single]])

    def weights(self, weight: Array) -> Array:
        """The weight of each row: that of a pair is the harmonic mean of its runs'."""
        both = 2 / (1 / weight[self.base] + 1 / weight[self.idea])
        return np.concatenate([both, both, weight[self.single]])


def stacked(base: Observations, idea: Observations) -> Runs:
    """Both ladders in one; runs of weight 0 are left out.

    Raises UserError when the two were counted by different conventions of compute.
    """
    _same_convention(base, idea)
    tables = [table.subset(table.weight > 0) for table in (base, idea)]
    columns = {
        name: np.concatenate([getattr(t, name) for t in tables]) for name in ("flops", "tokens", "loss", "weight")
    }
    labels = [None if table.group is None else table.group for table in tables]
    seeds = [None if table.seed is None else table.seed for table in tables]
    shared = labels[0] is not None and labels[1] is not None and set(labels[0].tolist()) & set(labels[1].tolist())
    return Runs(
        log_x=np.log(columns["flops"] / columns["tokens"]),
        log_tokens=np.log(columns["tokens"]),
        log_loss=np.log(columns["loss"]),
        weight=columns["weight"],
        idea=np.repeat([False, True], [len(table) for table in tables]),
        label=np.concatenate(labels) if shared else None,  # type: ignore[arg-type]
        seed=np.concatenate(seeds) if seeds[0] is not None and seeds[1] is not None else None,  # type: ignore[arg-type]
    )


def match(runs: Runs) -> Rows:
    """Pair the ladders: same label and seed where both have them, scale and tokens as near as can be.

    Seeds that the ladders do not share say nothing, and are then not looked at.
    """
    a, b = np.flatnonzero(~runs.idea), np.flatnonzero(runs.idea)
    away = [np.abs(column[a][:, None] - column[b][None, :]) for column in (runs.log_x, runs.log_tokens)]
    apart = (away[0] > NEAR) | (away[1] > NEAR)
    if runs.label is not None:
        apart |= runs.label[a][:, None] != runs.label[b][None, :]
    if runs.seed is not None and np.intersect1d(runs.seed[a], runs.seed[b]).size:
        apart |= runs.seed[a][:, None] != runs.seed[b][None, :]
    cost = np.where(apart, 1e3, away[0] + away[1])
    left, right = optimize.linear_sum_assignment(cost)
    kept = cost[left, right] < 1e3
    base, idea = a[left[kept]], b[right[kept]]
    single = np.setdiff1d(np.arange(len(runs.idea)), np.concatenate([base, idea]))
    cluster, chains = _clusters(runs, idea, single)
    return Rows(base, idea, single, cluster, chains)


def _clusters(runs: Runs, idea: Index, single: Index) -> tuple[Index, bool]:
    """Labels of what shares noise: runs of one label and seed. Without labels, or with too few, every row its own."""
    place = np.concatenate([idea, idea, single])
    if runs.label is not None:
        seed = runs.seed if runs.seed is not None else np.zeros(len(runs.label))
        names = np.array([f"{label} {number:g}" for label, number in zip(runs.label, seed, strict=True)])
        cluster = np.unique(names[place], return_inverse=True)[1]
        if len(np.unique(cluster)) >= FEWEST_CHAINS:
            return cluster.astype(np.intp), True
    pairs = np.arange(len(idea))
    return np.concatenate([pairs, pairs, len(idea) + np.arange(len(single))]).astype(np.intp), False


def _same_convention(base: Observations, idea: Observations) -> None:
    if base.params is None or idea.params is None:
        return
    counted = [float(np.median(table.flops / (table.params * table.tokens))) for table in (base, idea)]
    if np.all(np.abs(np.log(np.sort(counted) / [2, 6])) < EXACTLY):
        raise UserError(
            f"the ladders count compute differently: C is {counted[0]:.2g}·N·D in the baseline's and "
            f"{counted[1]:.2g}·N·D in the idea's; count both alike (6·N·D, or M·D) in the column 'flops'"
        )
