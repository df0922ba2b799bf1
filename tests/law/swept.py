"""Synthetic sweeps whose optima are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nachim.law import Observations

LR, BATCH = (5e-3, -0.5, 0.25), (1e5, 0.0, 0.5)
"""Coefficient at N = 1e8 and D = 1e9, power of N, power of D."""
CELLS = [(n, d) for n in (3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10)]


def best(law: tuple[float, float, float], params: float, tokens: float) -> float:
    """The optimum that a sweep was made with."""
    return float(law[0] * (params / 1e8) ** law[1] * (tokens / 1e9) ** law[2])


def sweep_runs(
    cells: Sequence[tuple[float, float]] = CELLS,
    noise: float = 0.0,
    seed: int = 0,
    rates: Sequence[float] = (-2, -1, 0, 1, 2),
    batches: Sequence[float] = (-1, 0, 1),
) -> Observations:
    """Runs at every rate and batch, in factors of two from the power of two nearest to the optimum of each cell.

    Excess loss is a skewed bowl: e^p - 1 - p along the rate, whose best value grows with the square root of the batch.
    """
    rng, rows = np.random.default_rng(seed), []
    for params, tokens in cells:
        floor = 1.7 + 400 / params**0.34 + 410 / tokens**0.28
        at = np.log([best(LR, params, tokens), best(BATCH, params, tokens)])
        centre = np.round(at / np.log(2)) * np.log(2)
        for i in rates:
            for j in batches:
                z = centre + np.log(2) * np.array([i, j])
                q = z[1] - at[1]
                p = 0.8 * (z[0] - at[0] - 0.5 * q)
                excess = 0.02 * (np.expm1(p) - p) + 0.005 * q**2 + noise * rng.standard_normal()
                rows.append((params, tokens, np.exp(z[0]), np.exp(z[1]), floor * np.exp(excess)))
    params, tokens, lr, batch, loss = np.array(rows).T
    return Observations(tokens=tokens, loss=loss, params=params, lr=lr, batch_tokens=batch)
