"""Seconds to fit 245 runs, and to refit them 1,000 times, beside the PyPI package chinchilla where that is importable.

    python bench/fit_speed.py [--rounds 5] [--grid 5]

The runs are made up: Chinchilla's published surface with 1 % noise. The contenders take turns; wall and processor time
of each are medians. chinchilla 0.2.0 is measured once, from the starts of its README (5 values for each of 5
coefficients; `--grid 2` makes it 32 starts), and skipped where it is not installed, as it is not needed otherwise: a
virtual environment with numpy, scipy and it, and PYTHONPATH=src, runs this. vpnls (arXiv 2603.22339) is on no registry.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nachim.law import LAWS, Law, Observations, fit
from nachim.law.fit import sample_of
from nachim.law.solve import minimise

TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""Published constants of Chinchilla's law (arXiv 2203.15556 section 3.3)."""
RUNS, REFITS, NOISE = 245, 1000, 0.01


def table() -> Observations:
    """RUNS runs of 40 M to 16 B parameters and 1.6 to 250 tokens a parameter."""
    rng = np.random.default_rng(0)
    x, ratio = 10 ** rng.uniform(7.6, 10.2, RUNS), 10 ** rng.uniform(0.2, 2.4, RUNS)
    loss = LAWS["chinchilla"].predict(TRUTH, x, x * ratio) * np.exp(NOISE * rng.standard_normal(RUNS))
    return Observations(tokens=x * ratio, loss=loss, params=x)


def refits(obs: Observations, law: Law) -> Callable[[], object]:
    """1,000 case resamples of the runs, each refitted to convergence from the fit to all."""
    sample, point = sample_of(obs, "params", law), fit(obs, law, "params").point
    weight = np.random.default_rng(0).multinomial(RUNS, np.full(RUNS, 1 / RUNS), size=REFITS).astype(float)
    target, start = np.tile(sample.log_loss, (REFITS, 1)), np.tile(point, (REFITS, 1))
    return lambda: minimise(law, sample.inputs, target, weight, start, steps=60)


def peer(obs: Observations, grid: int) -> Callable[[], object]:
    """chinchilla's own fit of the same runs, from `grid` values a coefficient over the ranges of its README."""
    from chinchilla import Chinchilla

    ends = {"E": (1, 2), "a": (1, 10), "b": (1, 10), "alpha": (0.1, 0.7), "beta": (0.1, 0.7)}
    folder = Path(tempfile.mkdtemp())
    rows = zip(obs.flops, obs.params, obs.tokens, obs.loss, strict=True)
    lines = ["C,N,D,loss", *(",".join(f"{each:.17g}" for each in row) for row in rows)]
    (folder / "df.csv").write_text("\n".join(lines) + "\n")
    grids = {name: np.linspace(*limits, grid) for name, limits in ends.items()}
    rival = Chinchilla(str(folder), param_grid=grids, log_level=40)

    def run() -> object:
        rival.fit()
        return rival.params

    return run


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds, those of child processes included."""
    wall, before = time.perf_counter(), os.times()
    run()
    after = os.times()
    return time.perf_counter() - wall, sum(after[:4]) - sum(before[:4])


def main() -> None:
    """Print the table."""
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--grid", type=int, default=5)
    asked = ask.parse_args()
    obs = table()
    contenders: dict[str, Callable[[], object]] = {}
    for name, law in LAWS.items():
        contenders[f"nachim, {name}, from 16 starts with its certificate"] = lambda law=law: fit(obs, law, "params")
        contenders[f"nachim, {name}, {REFITS} refits"] = refits(obs, law)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(asked.rounds):
        for name, run in contenders.items():
            times[name].append(timed(run))
    if importlib.util.find_spec("chinchilla"):
        times[f"chinchilla 0.2.0, from {asked.grid**5} starts"] = [timed(peer(obs, asked.grid))]
    else:
        print("chinchilla is not importable here: skipped", file=sys.stderr)
    print(f"{RUNS} runs; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'':58} {'wall, s':>9} {'processor, s':>13} {'rounds':>7}")
    for name, each in times.items():
        wall, spent = (statistics.median(column) for column in zip(*each, strict=True))
        print(f"{name:58} {wall:9.3f} {spent:13.3f} {len(each):7}")


if __name__ == "__main__":
    main()
