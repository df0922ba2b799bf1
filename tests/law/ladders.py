"""Synthetic runs with a known truth."""

from __future__ import annotations

import numpy as np

from nachim.law import LAWS, Law, Observations

TRUTH = {
    "chinchilla": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "coupled": {"E": 1.7, "A": 2.0e4, "B": 1e5, "alpha": 0.65, "beta": 0.62, "k": 0.45},
}


def ladder(law: Law, rng: np.random.Generator, noise: float, fall: float = 0.0) -> Observations:
    """30 runs: 5 shapes, 5 to 160 tokens a parameter; `fall` lowers it from a third of the top budget on."""
    x = np.repeat([3e5, 8e5, 2e6, 5e6, 1.2e7], 6)
    tokens = np.tile(np.geomspace(5, 160, 6), 5) * x
    loss = law.predict(TRUTH[law.name], x, tokens) * np.exp(noise * rng.standard_normal(30))
    flops = 6 * x * tokens
    return Observations(tokens=tokens, params=x, loss=np.where(flops >= flops.max() / 3, loss * (1 - fall), loss))


def scattered(name: str, n: int = 60) -> Observations:
    """Noise-free runs of a law at scattered scales and token counts."""
    rng = np.random.default_rng(0)
    x, tokens = 10 ** rng.uniform(7, 10, n), 10 ** rng.uniform(8.5, 11, n)
    return Observations(tokens=tokens, params=x, loss=LAWS[name].predict(TRUTH[name], x, tokens))
