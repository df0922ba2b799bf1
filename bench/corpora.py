"""Whether the test of `nachim fit --by group` is calibrated, and what it can see: p-values of corpora drawn from laws.

    python bench/corpora.py [TABLES] [DRAWS]

Each table holds two corpora whose laws differ in E and B, and in the last two rows in an exponent as well (beta 0.30
against 0.26 and 0.22). A calibrated test calls a share p of tables of equal exponents different at level p. Prints
these shares, Kolmogorov's p against uniform, and how often the 90 % interval of the second corpus's best scale over
the first's, at 10 times the dearest run, holds the true ratio (own exponents where they differ, else shared ones).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import kstest

from nachim.law import LAWS, Observations, concat
from nachim.law.corpora import corpora

LAW = LAWS["chinchilla"]
GOOD = {"E": 1.7, "A": 400.0, "B": 420.0, "alpha": 0.34, "beta": 0.30}
POOR = GOOD | {"E": 1.9, "B": 600.0}
OTHER = GOOD | {"E": 1.9, "B": 290.0, "beta": 0.26}
FAR = GOOD | {"E": 1.9, "B": 140.0, "beta": 0.22}
LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5)

Noise = Callable[[np.random.Generator, int], np.ndarray]


def normal(sd: float) -> Noise:
    """Normal noise on log loss."""
    return lambda rng, n: sd * rng.standard_normal(n)


def student(sd: float) -> Noise:
    """Heavy tails: Student's t of 3 degrees, `sd` its scale."""
    return lambda rng, n: sd * rng.standard_t(3, n)


def badly_tuned(sd: float) -> Noise:
    """Normal noise, and one run in ten 2 to 10 % too high."""
    return lambda rng, n: sd * rng.standard_normal(n) + (rng.random(n) < 0.1) * rng.uniform(0.02, 0.1, n)


@dataclass(frozen=True)
class Setting:
    """What tables are drawn from: the noise on each corpus, its scales and token counts, the second corpus's law."""

    noise: tuple[Noise, Noise]
    scales: int = 5
    lengths: int = 6
    second: tuple[tuple[str, float], ...] = tuple(POOR.items())

    def table(self, seed: int) -> Observations:
        """One table."""
        rng = np.random.default_rng(seed)
        x = np.repeat(np.geomspace(3e6, 3e8, self.scales), self.lengths)
        tokens = np.tile(np.geomspace(5, 160, self.lengths), self.scales) * x
        parts = []
        for name, theta, noise in zip(("good", "poor"), (GOOD, dict(self.second)), self.noise, strict=True):
            loss = LAW.predict(theta, x, tokens) * np.exp(noise(rng, len(x)))
            parts.append(Observations(tokens, loss, params=x, group=np.array([name] * len(x))))
        return concat(parts)


SETTINGS = {
    "normal, 0.1 %": Setting((normal(0.001),) * 2),
    "normal, 0.5 %": Setting((normal(0.005),) * 2),
    "normal, 2 %": Setting((normal(0.02),) * 2),
    "Student t of 3 degrees, 0.5 %": Setting((student(0.005),) * 2),
    "0.5 %, a tenth badly tuned": Setting((badly_tuned(0.005),) * 2),
    "0.2 % and 1 %": Setting((normal(0.002), normal(0.01))),
    "0.5 %, 12 runs a corpus": Setting((normal(0.005),) * 2, scales=4, lengths=3),
    "0.5 %, beta differs by 0.04": Setting((normal(0.005),) * 2, second=tuple(OTHER.items())),
    "0.5 %, beta differs by 0.08": Setting((normal(0.005),) * 2, second=tuple(FAR.items())),
}


def measured(setting: Setting, seed: int, draws: int) -> tuple[float, bool]:
    """The p-value of one table, and whether the interval of the ratio of best scales holds the true one."""
    obs, second = setting.table(seed), dict(setting.second)
    found = corpora(obs, law="chinchilla", seed=seed, draws=draws)
    flops = 10 * float(obs.flops.max())
    best, first = (float(LAW.allocation(theta, flops, "params")[0]) for theta in (second, GOOD))
    alike = second["beta"] == GOOD["beta"]
    low, high = found.shifts("exponents" if alike else "own", flops)[1].ratio_interval90
    return found.exponents.p, low <= best / first <= high


def main(tables: int = 100, draws: int = 199) -> None:
    """Print one table."""
    shown = Table("runs of 2 corpora", *(f"p <= {level:g}" for level in LEVELS), "Kolmogorov p", "ratio inside")
    for name, setting in SETTINGS.items():
        found, inside = zip(*(measured(setting, seed, draws) for seed in track(range(tables), name)), strict=True)
        shares = [f"{np.mean(np.array(found) <= level):.3f}" for level in LEVELS]
        shown.add_row(name, *shares, f"{kstest(found, 'uniform').pvalue:.2g}", f"{np.mean(inside):.2f}")
    Console(width=120).print(shown)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
