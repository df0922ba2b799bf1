"""Batch size and learning rate at any compute: DeepSeek's laws, to be corrected by a sweep on a small rung.

The published constants are a prior only. On StepLaw's dense grid (arXiv 2503.04715) they cost 0.76 % of loss.
"""

from __future__ import annotations

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
