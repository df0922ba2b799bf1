"""How well sweeps of few runs choose learning rate and batch: one bowl through all runs, or StepLaw's recipe.

    python bench/transfer.py ../shared/data/scaling/steplaw/observations.csv

From every (scale, tokens) of a dense grid it draws a few runs at random, fits both, and takes their regret on the whole
grid; a draw is repeated with several seeds, both sides on the same runs. Then it leaves out the largest scales.
"""

from __future__ import annotations

import sys

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nachim.law import Observations, read
from nachim.law.hyper import fit_without, hyper
from nachim.law.regret import Regret, grid_regret, steplaw_recipe
from nachim.law.sweep import Sweep, sweep_of

SEEDS = 8
RUNS = (5, 8, 12, 20)


def main(path: str) -> None:
    """Print the table for the grid at `path`."""
    obs = read(path)
    grid = sweep_of(obs)
    table = Table(title="regret on the whole grid, %: mean and worst, medians over draws", title_justify="left")
    for head in ("runs", "bowl, mean", "worst", "StepLaw's recipe, mean", "worst", "bowl better in"):
        table.add_column(head, justify="right")
    for count in RUNS:
        pairs = [few(obs, grid, count, seed) for seed in track(range(SEEDS), f"{count} runs a cell", transient=True)]
        ours, theirs = (
            np.median([[each.mean, each.worst] for each in side], axis=0) for side in zip(*pairs, strict=True)
        )
        better = sum(our.mean < their.mean for our, their in pairs)
        table.add_row(f"{count} a cell", *(f"{value:.3f}" for value in (*ours, *theirs)), f"{better} of {SEEDS}")
    for kept, ours, theirs in smaller(grid):
        values = (ours.mean, ours.worst, theirs.mean, theirs.worst)
        table.add_row(f"all, {kept} least scales", *(f"{value:.3f}" for value in values), "-")
    Console().print(table)


def few(obs: Observations, grid: Sweep, count: int, seed: int) -> tuple[Regret, Regret]:
    """Regret on the whole grid of both laws, fitted to `count` runs of each of its cells."""
    rng = np.random.default_rng(seed)
    cells = [np.flatnonzero(grid.cell == number) for number in range(len(grid.cells))]
    drawn = np.sort(np.concatenate([rng.choice(each, min(count, len(each)), replace=False) for each in cells]))
    sweep = sweep_of(obs.subset(drawn))
    ours = hyper(sweep, draws=0).log_best(*grid.cells.T)
    return grid_regret(grid, ours), grid_regret(grid, steplaw_recipe(sweep, grid.cells))


def smaller(grid: Sweep) -> list[tuple[int, Regret, Regret]]:
    """Regret on the larger scales of both laws, fitted to the 2, 3, ... least scales."""
    fitted, scales, found = hyper(grid, draws=0), np.unique(grid.cells[:, 0]), []
    for count in range(2, len(scales)):
        kept = grid.cells[:, 0] < scales[count]
        cells = np.flatnonzero(~kept)
        ours = fit_without(fitted, kept).log_best(*grid.cells[cells].T)
        theirs = steplaw_recipe(grid.only(kept), grid.cells[cells])
        found.append((count, grid_regret(grid, ours, cells), grid_regret(grid, theirs, cells)))
    return found


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        print("give a table of a grid: python bench/transfer.py ../shared/data/scaling/steplaw/observations.csv")
