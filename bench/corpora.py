"""Whether the test of `nachim fit --by group` is calibrated: p-values of corpora that do share their exponents.

    python bench/corpora.py [TABLES] [DRAWS]

Each table holds two corpora of 30 runs whose law differs in E and B alone, under 0.5 % noise; a calibrated test calls a
share p of them different at level p. Prints the shares for both p-values and both noises, and Kolmogorov's p.
"""

from __future__ import annotations

import sys

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
LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5)
NOISES = {"normal": lambda rng, n: rng.standard_normal(n), "Student t, 3 degrees": lambda rng, n: rng.standard_t(3, n)}


def drawn(seed: int, kind: str) -> Observations:
    """Two corpora of equal exponents: 5 scales by 6 token counts each."""
    rng = np.random.default_rng(seed)
    x = np.repeat([3e6, 1e7, 3e7, 1e8, 3e8], 6)
    tokens = np.tile(np.geomspace(5, 160, 6), 5) * x
    parts = []
    for name, theta in (("good", GOOD), ("poor", POOR)):
        loss = LAW.predict(theta, x, tokens) * np.exp(0.005 * NOISES[kind](rng, 30))
        parts.append(Observations(tokens, loss, params=x, group=np.array([name] * 30)))
    return concat(parts)


def main(tables: int = 200, draws: int = 199) -> None:
    """Print one table."""
    shown = Table("noise", "p-value", *(f"p <= {level:g}" for level in LEVELS), "Kolmogorov p")
    for kind in NOISES:
        found = [
            corpora(drawn(seed, kind), law="chinchilla", seed=seed, draws=draws).exponents
            for seed in track(range(tables), kind)
        ]
        for name, values in (("refits", [one.p for one in found]), ("F", [one.p_f for one in found])):
            shares = [f"{np.mean(np.array(values) <= level):.3f}" for level in LEVELS]
            shown.add_row(kind, name, *shares, f"{kstest(values, 'uniform').pvalue:.3f}")
    Console().print(shown)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
