"""What a prior on the laws' coefficients does to forecasts: python ideas/prior.py [--worlds 40]

Prints, for every study kept in ideas/, the forecast of its target as ladders are read, with the prior and without runs
that are early for it, then with all runs, then without the prior, and by how much the measured loss missed each; then
ladders of the same minutes read as one; then made-up ladders with the shapes and tokens of one of them, whose truth is
drawn evenly over a range as wide as the prior, and not around its middle.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
from kept import studies
from rich.console import Console
from rich.table import Table

from nachim.lab.store import run_noise
from nachim.law import Observations, study

MADE_UP = "prior/10min-s0"
RUN_NOISE, SHAPE_NOISE = 0.008, 0.004
"""Standard deviations of log loss between runs, and between shapes, of made-up ladders."""


def sealed(console: Console) -> None:
    """The table of studies."""
    table = Table("study", "as ladders are read (90 %)", "error", "all runs", "error", "no prior", "error")
    errors: list[list[float]] = []
    for kept in studies():
        run, noise, cells = kept.target, run_noise(kept.runs), []
        errors.append([])
        for obs, known in ((kept.late, noise), (kept.runs, noise), (kept.late, None)):
            bpb, low, high = study(obs, noise=known).predict(x=run.flops_per_token, tokens=run.train.tokens)
            errors[-1].append(kept.error(float(bpb)))
            outside = "" if low <= kept.measured <= high else ", outside"
            cells += [f"{bpb:.4f} ({low:.3f}-{high:.3f})", f"{errors[-1][-1]:+.2f} %{outside}"]
        table.add_row(kept.name, *cells)
    for name, sizes in (
        ("root mean square", np.sqrt(np.mean(np.square(errors), axis=0))),
        ("mean", np.mean(errors, axis=0)),
    ):
        table.add_row(name, *(cell for size in sizes for cell in ("", f"{size:+.2f} %")))
    console.print(table)


def together(console: Console) -> None:
    """The table of ladders of the same minutes read as one: what is left is no chance of single ladders."""
    table = Table("ladders", "runs", "error of all runs", "late runs", "error")
    for name in ("shapes/10min", "shapes/60min"):
        group = [kept for kept in studies() if kept.name.startswith(name)]
        cells = []
        for obs in (pooled([kept.runs for kept in group]), pooled([kept.late for kept in group])):
            reading, errors = study(obs, noise=RUN_NOISE), []
            for kept in group:
                bpb = reading.predict(x=kept.target.flops_per_token, tokens=kept.target.train.tokens)[0]
                errors.append(f"{kept.error(float(bpb)):+.2f}")
            cells += [str(int((obs.weight > 0).sum())), ", ".join(errors) + " %"]
        table.add_row(name, *cells)
    console.print(table)


def pooled(tables: list[Observations]) -> Observations:
    """The runs of several ladders as one table."""
    columns = ("tokens", "loss", "flops_per_token", "flops", "group", "weight")
    return Observations(**{name: np.concatenate([getattr(one, name) for one in tables]) for name in columns})


def world(obs: Observations, rng: np.random.Generator, x: float, tokens: float) -> tuple[Observations, float]:
    """`obs` with losses of a surface drawn at random and noise, and what one run on it at `x` and `tokens` measures."""
    alpha, beta, floor, share = (rng.uniform(*ends) for ends in ((0.25, 0.75), (0.22, 0.5), (0.3, 1.3), (0.3, 0.7)))
    k = np.exp(rng.normal(0, 0.3))
    scale = obs.x("flops_per_token")
    middle = [np.exp(np.log(column).mean()) for column in (scale, obs.tokens)]

    def surface(x: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        by_x = share * (np.asarray(x) / middle[0]) ** (-alpha / k)
        return np.asarray(floor + (2 - floor) * (by_x + (1 - share) * (tokens / middle[1]) ** (-beta / k)) ** k)

    shapes, place = np.unique(scale, return_inverse=True)
    off = rng.normal(0, RUN_NOISE, len(scale)) + rng.normal(0, SHAPE_NOISE, len(shapes))[place]
    made = dataclasses.replace(obs, loss=surface(scale, obs.tokens) * np.exp(off), weight=np.ones(len(scale)))
    return made, float(surface(x, tokens) * np.exp(rng.normal(0, np.hypot(RUN_NOISE, SHAPE_NOISE))))


def made_up(console: Console, worlds: int) -> None:
    """The table of made-up ladders."""
    made_of = next(kept for kept in studies() if kept.name == MADE_UP)
    run, obs, rng = made_of.target, made_of.runs, np.random.default_rng(0)
    found: dict[bool, list[tuple[float, bool, float]]] = {True: [], False: []}
    for _ in range(worlds):
        made, truth = world(obs, rng, run.flops_per_token, run.train.tokens)
        for known in (True, False):
            reading = study(made, noise=RUN_NOISE if known else None)
            bpb, low, high = (float(each) for each in reading.predict(x=run.flops_per_token, tokens=run.train.tokens))
            found[known].append((100 * (truth / bpb - 1), low <= truth <= high, 100 * (high / bpb - 1)))
    table = Table(f"{worlds} made-up ladders", "error, rms", "median size", "mean", "coverage of 90 %", "half-width")
    for known, name in ((True, "with the prior"), (False, "without")):
        error, inside, width = np.array(found[known]).T
        table.add_row(
            name,
            f"{np.sqrt((error**2).mean()):.2f} %",
            f"{np.median(np.abs(error)):.2f} %",
            f"{error.mean():+.2f} %",
            f"{100 * inside.mean():.0f} %",
            f"{np.median(width):.1f} %",
        )
    console.print(table)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=40)
    worlds = parser.parse_args().worlds
    console = Console(width=150)
    sealed(console)
    together(console)
    made_up(console, worlds)


if __name__ == "__main__":
    main()
