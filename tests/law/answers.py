"""Tasks of a known truth: a law of task loss, a sigmoid from loss to accuracy, and the noise of a finite task."""

from __future__ import annotations

import numpy as np

from nachim.law import LAWS, Observations
from nachim.law.forms import Array

LOSS = {"E": 0.45, "A": 60.0, "B": 90.0, "alpha": 0.28, "beta": 0.25}
SIZES, RATIOS = np.geomspace(1e8, 1.3e9, 4), np.array([20.0, 40.0, 100.0, 200.0])


def loss_at(params: Array, tokens: Array) -> Array:
    """The true task loss, bits per byte."""
    return LAWS["chinchilla"].predict(LOSS, params, tokens)


def right_at(loss: Array, chance: float, middle: float = 1.0, steep: float = 4.0) -> Array:
    """The true accuracy."""
    return chance + (1 - chance) / (1 + np.exp(steep * (loss - middle)))


def answered(
    rng: np.random.Generator, chance: float = 0.25, middle: float = 1.0, steep: float = 4.0, items: int = 2000
) -> Observations:
    """16 runs: 4 sizes by 4 ratios of tokens, task losses with noise of 0.5 %, accuracies of `items` questions."""
    params = np.repeat(SIZES, len(RATIOS))
    tokens = np.tile(RATIOS, len(SIZES)) * params
    loss = loss_at(params, tokens) * np.exp(0.005 * rng.standard_normal(len(params)))
    accuracy = rng.binomial(items, right_at(loss, chance, middle, steep)) / items
    extra = {"accuracy": accuracy, "chance": np.full(16, chance), "items": np.full(16, float(items))}
    return Observations(tokens=tokens, params=params, loss=loss, extra=extra)
