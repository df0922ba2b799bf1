"""Batch size and learning rate at any scale: published laws, and laws refitted by `nachim.law.hyper`.

Published constants are priors only: what they cost on StepLaw's dense grid stands in docs/transfer.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nachim.law.forms import Array
from nachim.law.published import BATCH_OPT, DATA_OPT, LR_OPT, MODEL_OPT
from nachim.spec.error import UserError

FEWEST = 3


def batch_opt(flops: Array | float) -> Array:
    """Optimal batch in *tokens*: 0.2920·C^0.3271 (arXiv 2401.02954 eq. 1)."""
    return np.asarray(BATCH_OPT(np.asarray(flops, float)))


def lr_opt(flops: Array | float) -> Array:
    """Optimal peak learning rate: 0.3118·C^-0.1250 (arXiv 2401.02954 eq. 1)."""
    return np.asarray(LR_OPT(np.asarray(flops, float)))


def model_opt(flops: Array | float) -> Array:
    """Optimal model scale M in non-embedding FLOPs a token: 0.1715·C^0.5243 (arXiv 2401.02954 eq. 4)."""
    return np.asarray(MODEL_OPT(np.asarray(flops, float)))


def data_opt(flops: Array | float) -> Array:
    """Optimal training tokens D: 5.8316·C^0.4757 (arXiv 2401.02954 eq. 4)."""
    return np.asarray(DATA_OPT(np.asarray(flops, float)))


@dataclass(frozen=True)
class Transfer:
    """DeepSeek's laws times a correction measured on a small rung."""

    lr_factor: float = 1.0
    batch_factor: float = 1.0

    def lr(self, flops: Array | float) -> Array:
        """Peak learning rate at compute `flops`."""
        return self.lr_factor * lr_opt(flops)

    def batch_tokens(self, flops: Array | float) -> Array:
        """Batch in tokens at compute `flops`."""
        return self.batch_factor * batch_opt(flops)


@dataclass(frozen=True)
class Plane:
    """`coefficient`·x^`model`·D^`data`: an optimum against model scale x and tokens D. A plane, in logarithms."""

    coefficient: float
    model: float
    data: float

    def __call__(self, x: Array | float, tokens: Array | float) -> Array:
        """Its value at scale `x` and `tokens`."""
        return np.asarray(
            self.coefficient * np.asarray(x, float) ** self.model * np.asarray(tokens, float) ** self.data
        )


@dataclass(frozen=True)
class Planes:
    """Laws for what is tuned, by column name, in a `scale` (params, or flops_per_token), and their `source`."""

    scale: str
    source: str
    laws: Mapping[str, Plane]

    def lr(self, x: Array | float, tokens: Array | float) -> Array:
        """Peak learning rate at scale `x` and `tokens`."""
        return self.laws["lr"](x, tokens)

    def batch_tokens(self, x: Array | float, tokens: Array | float) -> Array:
        """Batch in tokens at scale `x` and `tokens`."""
        return self.laws["batch_tokens"](x, tokens)


PUBLISHED: dict[str, Planes] = {
    "deepseek": Planes(
        "params",
        "arXiv 2401.02954 eq. 1, with C = 6·N·D",
        {
            "lr": Plane(LR_OPT.coefficient * 6**LR_OPT.exponent, LR_OPT.exponent, LR_OPT.exponent),
            "batch_tokens": Plane(
                BATCH_OPT.coefficient * 6**BATCH_OPT.exponent, BATCH_OPT.exponent, BATCH_OPT.exponent
            ),
        },
    ),
    "steplaw": Planes(
        "params",
        "arXiv 2503.04715 eq. 1",
        {"lr": Plane(1.79, -0.713, 0.307), "batch_tokens": Plane(0.58, 0.0, 0.571)},
    ),
}
"""Published laws in N (embedding excluded) and D."""
POWER_LINES_BATCH = 0.383
"""The power of D that the best batch follows in arXiv 2505.13738, whatever N; the level is that of its own setting."""


def published_exponents(name: str) -> tuple[Array, Array]:
    """The published powers of x and D in the optimal `name`: their mean and standard deviation, each (2,)."""
    found = [[law.laws[name].model, law.laws[name].data] for law in PUBLISHED.values() if name in law.laws]
    found += [[0.0, POWER_LINES_BATCH]] if name == "batch_tokens" else []
    return np.mean(found, axis=0), np.std(found, axis=0, ddof=1)


def optimum(values: Array, loss: Array) -> float:
    """The best of a swept value: the vertex of a parabola through log value and the best loss at each value.

    The parabola takes the five values around the best one; its vertex is held within the sweep widened by one step on
    either side. Raises UserError for fewer than 3 values.
    """
    swept = np.unique(values)
    if len(swept) < FEWEST:
        raise UserError(f"a sweep needs at least {FEWEST} values to have a best one inside it, not {len(swept)}")
    log, best = np.log(swept), np.array([loss[values == value].min() for value in swept])
    around = slice(max(0, int(best.argmin()) - 2), int(best.argmin()) + 3)
    bend, slope, _ = np.polyfit(log[around] - log[best.argmin()], best[around], 2)
    place = log[best.argmin()] - slope / (2 * bend) if bend > 0 else log[best.argmin()]
    low, high = 2 * log[0] - log[1], 2 * log[-1] - log[-2]
    return float(np.exp(np.clip(place, low, high)))
