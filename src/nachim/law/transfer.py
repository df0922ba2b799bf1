"""Batch size and learning rate at any compute: DeepSeek's laws, corrected by a sweep on a small rung.

The published constants are a prior only. On StepLaw's dense grid (arXiv 2503.04715) they cost 0.76 % of loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nachim.law.forms import Array
from nachim.law.observe import Observations
from nachim.law.published import BATCH_OPT, DATA_OPT, LR_OPT, MODEL_OPT
from nachim.law.select import budgets
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
    """DeepSeek's laws times a correction measured on a small rung.

    `lr_at_edge` and `batch_at_edge`: the best value is at the end of the sweep, which should be widened.
    """

    lr_factor: float = 1.0
    batch_factor: float = 1.0
    lr_at_edge: bool = False
    batch_at_edge: bool = False

    def lr(self, flops: Array | float) -> Array:
        """Peak learning rate at compute `flops`."""
        return self.lr_factor * lr_opt(flops)

    def batch_tokens(self, flops: Array | float) -> Array:
        """Batch in tokens at compute `flops`."""
        return self.batch_factor * batch_opt(flops)


def fit_transfer(obs: Observations) -> Transfer:
    """Correct the prior by a sweep of `lr`, `batch_tokens` or both at one, cheap, compute budget.

    Each column with 3 or more values gives the vertex of a parabola through (log value, best loss at that
    value); a column that was not swept keeps the prior. Raises UserError when neither column was swept, or
    the runs are not one model at one budget (within 10 %), since their losses would not compare.
    """
    if budgets(obs.flops).max() > 0 or len(np.unique(obs.x(obs.scales[0]))) > 1:
        raise UserError("a sweep must be of one model at one compute budget: give the runs of one rung only")
    prior = float(np.exp(np.log(obs.flops).mean()))
    lr, batch = _if_swept(obs.lr, obs.loss), _if_swept(obs.batch_tokens, obs.loss)
    if lr is None and batch is None:
        raise UserError(f"a sweep needs at least {FEWEST} values of 'lr' or of 'batch_tokens'")
    return Transfer(
        lr_factor=lr[0] / float(lr_opt(prior)) if lr else 1.0,
        batch_factor=batch[0] / float(batch_opt(prior)) if batch else 1.0,
        lr_at_edge=lr[1] if lr else False,
        batch_at_edge=batch[1] if batch else False,
    )


def optimum(values: Array, loss: Array) -> tuple[float, bool]:
    """The best of a swept value, and whether it lies at the edge of the sweep.

    A parabola through log value and the best loss at each value; its vertex is held within the sweep widened
    by one step on either side. Raises UserError for fewer than 3 values.
    """
    swept = np.unique(values)
    if len(swept) < FEWEST:
        raise UserError(f"a sweep needs at least {FEWEST} values to have a best one inside it, not {len(swept)}")
    log, best = np.log(swept), np.array([loss[values == value].min() for value in swept])
    around = slice(max(0, int(best.argmin()) - 2), int(best.argmin()) + 3)
    bend, slope, _ = np.polyfit(log[around] - log[best.argmin()], best[around], 2)
    place = log[best.argmin()] - slope / (2 * bend) if bend > 0 else log[best.argmin()]
    low, high = 2 * log[0] - log[1], 2 * log[-1] - log[-2]
    at_edge = bool(best.argmin() in (0, len(swept) - 1) or not log[0] <= place <= log[-1])
    return float(np.exp(np.clip(place, low, high))), at_edge


def _if_swept(values: Array | None, loss: Array) -> tuple[float, bool] | None:
    return optimum(values, loss) if values is not None and len(np.unique(values)) >= FEWEST else None
