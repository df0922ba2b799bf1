"""How often the mixture law's intervals hold: tables of a known truth, refitted.

    python bench/mixture.py --tables 100

For each table the truth is drawn (floors, heights, slopes of as many held-out texts as corpora), runs over a design
have noise of their own, and three things are asked: does the interval of a new run hold what it measures, does the
interval of the first corpus' best share hold the true best one, how much worse than the true best mixture the chosen
one is.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import tyro
from scipy import optimize

from nachim.law.forms import Array
from nachim.law.mixture import fit_mixture
from nachim.law.mixture_runs import MixtureRuns

DESIGNS = ((2, 5, 1), (2, 5, 2), (2, 7, 1), (3, 8, 1), (3, 8, 2), (5, 12, 1))
"""Corpora, mixtures, seeds."""


def main(tables: Annotated[int, tyro.conf.arg(metavar="N")] = 100, noise: float = 0.005) -> None:
    """Print one line a design."""
    print(f"{tables} tables a row, noise of {noise:.1%} a run")
    print("| corpora | mixtures | seeds | a new run inside, % | its width, % | best share inside, % | lost, % |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for corpora, mixtures, seeds in DESIGNS:
        rng = np.random.default_rng(corpora + mixtures + seeds)
        found = np.array([one(rng, corpora, mixtures, seeds, noise) for _ in range(tables)])
        inside, width, best, lost = found.mean(axis=0)
        cells = (f"{100 * inside:.0f}", f"{100 * width:.1f}", f"{100 * best:.0f}", f"{100 * lost:.3f}")
        print(f"| {corpora} | {mixtures} | {seeds} | {' | '.join(cells)} |", flush=True)


def one(rng: np.random.Generator, corpora: int, mixtures: int, seeds: int, noise: float) -> tuple[float, ...]:
    """A table: whether a new run lay inside, the interval's width, whether the best share did, and what was lost."""
    floor, height = rng.uniform(1.0, 2.0, corpora), rng.uniform(0.4, 1.2, corpora)
    slopes = rng.uniform(-0.3, 0.3, (corpora, corpora)) - np.diag(rng.uniform(0.8, 2.0, corpora))
    shares = 0.05 + (1 - 0.05 * corpora) * rng.dirichlet(np.ones(corpora), mixtures)
    shares = np.tile(shares, (seeds, 1))

    def truth(at: Array) -> Array:
        return floor + height * np.exp(at @ slopes.T)

    losses = truth(shares) * np.exp(noise * rng.standard_normal((len(shares), corpora)))
    columns = {f"share/{place}": column for place, column in enumerate(shares.T)}
    columns |= {f"loss/{place}": column for place, column in enumerate(losses.T)}
    law = fit_mixture(MixtureRuns.of(columns | {"seed": np.repeat(np.arange(seeds), mixtures)}))
    at = shares[:mixtures].T @ rng.dirichlet(np.ones(mixtures))
    forecast = law.forecast(at, law.target()).loss
    new = float((truth(at) * np.exp(noise * rng.standard_normal(corpora))).mean())
    best = law.best(law.target())
    true = least(lambda shares: float(truth(shares).mean()), law.runs.shares)
    low, high = best.interval90["0"]
    lost = truth(best.point).mean() / truth(true).mean() - 1
    held = low - 1e-3 <= true[0] <= high + 1e-3
    return forecast[1] <= new <= forecast[2], (forecast[2] - forecast[1]) / forecast[0], held, lost


def least(loss: object, shares: Array) -> Array:
    """The shares of least true loss within those of the runs."""
    box = optimize.Bounds(shares.min(axis=0), shares.max(axis=0))
    one = {"type": "eq", "fun": lambda shares: shares.sum() - 1}
    return optimize.minimize(loss, shares.mean(axis=0), method="SLSQP", bounds=box, constraints=[one]).x


if __name__ == "__main__":
    tyro.cli(main)
