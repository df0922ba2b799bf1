"""Replay: how much of the cost of published runs does a forecast need, when each next run is chosen?

    python ideas/active_design.py ../shared/data/scaling --seeds 10 [--share 0.05 0.1] [--also NAME=POOL.csv,HELD.csv]

Every table is cut at its dearest runs, which are to be forecast. A design may spend `share` of the cost of all cheaper
runs together; it begins with ten cheap runs drawn at random, the same for every design, and sees only the losses of
runs that it pays for. What it chose is given to `study`, whose error on the held-out runs is compared with the error of
`study` on all of the cheaper runs. A table whose first ten runs cost more than the share says nothing about it, and is
left out of the summary.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from nachim.law import LAWS, Candidates, Observations, Target, next_runs, read, study
from nachim.law.fit import sample_of, shortfall

NEAR = 1.1
"""A median error within so many times that of all runs counts as theirs."""
FIRST = 10
CHEAP = 0.005
"""The first runs are drawn among the cheapest that cost this share together, but at least twice as many."""
GROW = 1.5
"""The active design refits whenever its spend has grown so many times."""
SHAPES, LEVELS = 5, 4
Index = list[int]


@dataclass(frozen=True)
class Table:
    """Runs that may be bought, and the dearer ones that are to be forecast."""

    name: str
    pool: Observations
    held: Observations


def tables(root: Path) -> list[Table]:
    """The shared sets, cut as the project's baselines cut them."""
    found = []
    porian = read(root / "porian" / "observations.csv")
    for group in sorted(set(porian.group)):
        if "/tuned/" in group or group.endswith("base/long/kaplan/attention/train"):
            runs = porian.subset(porian.group == group)
            best = np.array([runs.loss[runs.flops == flops].min() for flops in runs.flops])
            runs = runs.subset(runs.loss <= best + 0.15)
            levels = np.unique(runs.flops)
            found.append(cut(f"porian {group}", runs, runs.flops >= 0.99 * levels[-2]))
    gadre = read(root / "gadre" / "observations.csv")
    for group in sorted(set(gadre.group)):
        runs = gadre.subset(gadre.group == group)
        found.append(cut(f"gadre {group}", runs, runs.params > 1e9))
    gemstones = read(root / "gemstones" / "observations.csv")
    found.append(cut("gemstones", gemstones, gemstones.tokens >= 6e10, cheaper=False))
    steplaw = read(root / "steplaw" / "observations.csv")
    keys = np.stack([steplaw.params, steplaw.tokens], axis=1)
    places = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    tuned = [np.flatnonzero(places == place)[np.argmin(steplaw.loss[places == place])] for place in np.unique(places)]
    steplaw = steplaw.subset(np.array(tuned))
    found.append(cut("steplaw, tuned", steplaw, steplaw.flops >= np.sort(steplaw.flops)[-3]))
    once = read(root / "muennighoff" / "observations.csv")
    once = once.subset(once.tokens <= once.extra["unique_tokens"])
    found.append(cut("muennighoff, one epoch", once, once.flops >= np.sort(once.flops)[-3]))
    return found


def cut(name: str, runs: Observations, held: np.ndarray, cheaper: bool = True) -> Table:
    """`runs` parted into the `held` ones, and those of the rest that are cheaper than any of them."""
    pool = runs.flops < runs.flops[held].min() if cheaper else ~held
    return Table(name, runs.subset(pool), runs.subset(held))


def opening(pool: Observations, rng: np.random.Generator) -> Index:
    """Cheap runs at random that determine Chinchilla's law."""
    order = np.argsort(pool.flops, kind="stable")
    among = max(2 * FIRST, int((np.cumsum(pool.flops[order]) <= CHEAP * pool.flops.sum()).sum()))
    for attempt in range(1000):
        pick = rng.choice(order[: among + attempt // 20], FIRST, replace=False)
        some = pool.subset(pick)
        if not shortfall(sample_of(some, some.scales[0]), LAWS["chinchilla"]):
            return [int(i) for i in pick]
    raise SystemExit("no ten runs of this table determine a law")


def spent(pool: Observations, index: Index) -> float:
    """FLOP of the runs `index`."""
    return float(pool.flops[index].sum())


def active(table: Table, index: Index, budget: float, rng: np.random.Generator) -> Index:
    """Fit, buy what `next_runs` says until the spend has grown by GROW, and again."""
    pool, chosen = table.pool, list(index)
    scale = pool.scales[0]
    target = Target(x=table.held.x(scale), tokens=table.held.tokens)
    while True:
        left = budget - spent(pool, chosen)
        rest = np.setdiff1d(np.arange(len(pool)), chosen)
        rest = rest[pool.flops[rest] <= left]
        if not len(rest):
            return chosen
        offer = Candidates(pool.x(scale)[rest], pool.tokens[rest], pool.flops[rest])
        reading = study(pool.subset(np.array(chosen)), draws=40)
        picks = next_runs(reading, offer, target, budget=left).picks
        if not picks:
            return chosen
        enough = (GROW - 1) * spent(pool, chosen)
        now = [pick for pick in picks if pick.spent - pick.cost <= enough and pick.spent <= left]
        chosen += [int(rest[pick.index]) for pick in now or picks[:1]]


def at_random(table: Table, index: Index, budget: float, rng: np.random.Generator) -> Index:
    """Any run that can still be paid, drawn at random."""
    return _buy(table.pool, index, budget, rng.permutation(len(table.pool)))


def cheapest(table: Table, index: Index, budget: float, rng: np.random.Generator) -> Index:
    """The cheapest runs first."""
    return _buy(table.pool, index, budget, np.argsort(table.pool.flops, kind="stable"))


def isoflop(table: Table, index: Index, budget: float, rng: np.random.Generator) -> Index:
    """LEVELS budgets evenly spaced in log C, SHAPES runs at each, the top as high as can be paid."""
    pool, chosen = table.pool, list(index)
    logs = np.log(pool.flops)
    low = float(logs[index].max())
    for top in np.linspace(low, logs.max(), 80):
        grid: Index = []
        for level in np.linspace(low, top, LEVELS):
            free = np.setdiff1d(np.flatnonzero(np.abs(logs - level) < 0.25), index + grid)
            by_size = free[np.argsort(pool.params[free], kind="stable")]
            grid += (
                [int(i) for i in by_size[np.unique(np.linspace(0, len(by_size) - 1, SHAPES).astype(int))]]
                if len(by_size)
                else []
            )
        if spent(pool, index + grid) <= budget:
            chosen = index + grid
    return chosen


def _buy(pool: Observations, index: Index, budget: float, order: np.ndarray) -> Index:
    chosen = list(index)
    for run in order:
        if run not in chosen and spent(pool, chosen) + pool.flops[run] <= budget:
            chosen.append(int(run))
    return chosen


DESIGNS: dict[str, Callable[[Table, Index, float, np.random.Generator], Index]] = {
    "active": active,
    "random": at_random,
    "isoflop": isoflop,
    "cheapest": cheapest,
}


def error(table: Table, index: Index | None = None) -> float:
    """Mean absolute error on the held-out runs, in percent, of the study of the runs `index` (all by default)."""
    runs = table.pool if index is None else table.pool.subset(np.array(index))
    held = table.held
    point, _, _ = study(runs, draws=40).predict(held.x(runs.scales[0]), held.tokens)
    return float(100 * np.mean(np.abs(point / held.loss - 1)))


def replay(table: Table, share: float, seeds: int) -> dict[str, Any]:
    """Every design on one table: by seed its error, how many runs it took, and their share of the cost of all."""
    cost = spent(table.pool, list(range(len(table.pool))))
    rows: dict[str, dict[str, list[float]]] = {
        name: {"error": [], "runs": [], "share": []} for name in ("opening", *DESIGNS)
    }
    for seed in range(seeds):
        first = opening(table.pool, np.random.default_rng(seed))
        for name in rows:
            design = DESIGNS.get(name)
            index = design(table, first, share * cost, np.random.default_rng(seed)) if design else first
            rows[name]["error"].append(error(table, index))
            rows[name]["runs"].append(len(index))
            rows[name]["share"].append(spent(table.pool, index) / cost)
    every = {"share": share, "table": table.name, "pool": len(table.pool), "held": len(table.held)}
    return {**every, "all": error(table), "designs": rows}


def main() -> None:
    """Print a line a table and share, a summary a share, and with --out write every number."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("root", type=Path)
    ask.add_argument("--seeds", type=int, default=10)
    ask.add_argument("--share", type=float, nargs="+", default=[0.05])
    ask.add_argument("--only", default="", help="tables whose name contains this")
    ask.add_argument("--also", action="append", default=[], help="NAME=POOL.csv,HELD.csv: another table")
    ask.add_argument("--out", type=Path)
    given = ask.parse_args()
    every = tables(given.root)
    for other in given.also:
        name, paths = other.split("=", 1)
        every.append(Table(name, *(read(path) for path in paths.split(","))))
    every = [table for table in every if given.only in table.name]
    done = []
    for share in given.share:
        print(f"--- {100 * share:g} % of the cost of all runs, {given.seeds} seeds")
        for table in every:
            began = time.time()
            done.append(replay(table, share, given.seeds))
            print(line(done[-1]), f"[{time.time() - began:.0f} s]", flush=True)
            if given.out:
                given.out.write_text(json.dumps(done, indent=1) + "\n")
        print(summary([each for each in done if each["share"] == share]), flush=True)


def line(found: dict[str, Any]) -> str:
    """A table's replay in one line: medians, least and most over the seeds."""
    parts = []
    for name, row in found["designs"].items():
        low, middle, high = np.quantile(row["error"], [0, 0.5, 1])
        parts.append(f"{name} {middle:.2f} ({low:.2f}–{high:.2f}) {np.median(row['runs']):.0f} runs")
    return f"{found['table']}: all {found['pool']} runs {found['all']:.2f} %; " + "; ".join(parts)


def summary(found: list[dict[str, Any]]) -> str:
    """Over the tables whose opening the share could pay: typical errors, and active against each other design."""
    kept = [each for each in found if np.median(each["designs"]["opening"]["share"]) <= each["share"]]
    if len(kept) < 2:
        return "too few tables for a summary"
    middle = {name: np.array([np.median(each["designs"][name]["error"]) for each in kept]) for name in DESIGNS}
    most = np.array([each["all"] for each in kept])
    lines = [f"{len(kept)} tables; geometric mean of the median errors: all runs {stats.gmean(most):.2f} %"]
    for name, errors in middle.items():
        reached = int((errors <= NEAR * most).sum())
        text = f"  {name} {stats.gmean(errors):.2f} %, within {NEAR:g} times that of all runs on {reached}"
        if name != "active":
            ratio = [_ratio(each["designs"], name) for each in kept]
            low, high = stats.t.interval(0.95, len(ratio) - 1, np.mean(ratio), stats.sem(ratio))
            wins = int((middle["active"] < errors).sum())
            text += f"; active's error over its own {np.exp(np.mean(ratio)):.2f} ({np.exp(low):.2f} to "
            text += f"{np.exp(high):.2f}, 95 % over tables), smaller on {wins}"
        lines.append(text)
    return "\n".join(lines)


def _ratio(designs: dict[str, dict[str, list[float]]], other: str) -> float:
    """Mean over the seeds, which pair the two, of the log of active's error over that of `other`."""
    return float(np.mean(np.log(np.array(designs["active"]["error"]) / np.array(designs[other]["error"]))))


if __name__ == "__main__":
    main()
