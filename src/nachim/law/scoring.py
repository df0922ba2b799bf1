"""One ability, scored in several ways: what of an "emergence" is the metric's doing (arXiv 2304.15004).

A model that gives the right token with chance p gives an answer of k tokens with p^k: a chance that rises smoothly with
scale makes an exact match that stays near 0 and then leaps, the later the longer the answer, while the number of tokens
right, or any proper score of p, shows no such thing.
"""

from __future__ import annotations

import numpy as np

from nachim.law.forms import Array
from nachim.spec.error import UserError

ANSWER = 10
"""Tokens of an answer that `leaps` scores."""


def chance_of_right(loss: Array | float, *, bits: bool = False) -> Array:
    """Chance of the right token from its cross-entropy, exp(-L) (arXiv 2304.15004 sec. 2); of a byte where `bits`."""
    return np.asarray(np.exp2(-np.asarray(loss, float)) if bits else np.exp(-np.asarray(loss, float)))


def exact_match(p: Array | float, k: float) -> Array:
    """Chance that all of `k` tokens are right, p^k (arXiv 2304.15004 sec. 2): the non-linear score.

    Raises UserError when p is no chance or k is below 1.
    """
    return np.asarray(_chance(p) ** _length(k))


def tokens_wrong(p: Array | float, k: float) -> Array:
    """Expected tokens wrong of `k`, k·(1 - p) (arXiv 2304.15004 sec. 2, edit distance): the linear score."""
    return np.asarray(_length(k) * (1 - _chance(p)))


def brier(p: Array | float) -> Array:
    """The right answer's term of Brier's proper score, (1 - p)^2: continuous where accuracy is not."""
    return np.asarray((1 - _chance(p)) ** 2)


def per_token(exact: Array | float, k: float) -> Array:
    """Chance of the right token that a measured exact match of `k` tokens tells of, its k-th root."""
    return np.asarray(_chance(exact) ** (1 / _length(k)))


def emergence(scores: Array) -> float:
    """How much scores (n,), in the order of scale, leap rather than rise: their range over the median step.

    sign · (max - min) / sqrt(median of squared steps), arXiv 2304.15004 eq. 1 after BIG-bench. A straight rise over n
    runs has n - 1; far more than that is a leap. Infinite where more than half of the steps are 0. Raises UserError for
    fewer than 3 scores.
    """
    if len(scores) < 3:
        raise UserError(f"{len(scores)} scores show no leap: at least 3 scales are needed")
    step = float(np.sqrt(np.median(np.diff(scores) ** 2)))
    reach = float(np.ptp(scores))
    sign = 1.0 if int(np.argmax(scores)) >= int(np.argmin(scores)) else -1.0
    return sign * (reach / step if step > 0 else np.inf) if reach > 0 else 0.0


def leaps(loss: Array, *, bits: bool = False, k: int = ANSWER) -> dict[str, float | None]:
    """The `emergence` of runs of task `loss` (n,), in the order of scale, scored in three ways: tokens right of `k`
    (linear), Brier's score, and an exact match of all `k`; None where fewer than 3 runs, or a score that is flat, show
    none."""
    if len(loss) < 3:
        return {"linear": None, "brier": None, "exact": None}
    p = chance_of_right(loss, bits=bits)
    scores = {"linear": -tokens_wrong(p, k), "brier": -brier(p), "exact": exact_match(p, k)}
    found = {name: emergence(values) for name, values in scores.items()}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def _chance(p: Array | float) -> Array:
    values = np.asarray(p, float)
    if not np.all((values >= 0) & (values <= 1)):
        raise UserError("a chance lies between 0 and 1")
    return values


def _length(k: float) -> float:
    if not k >= 1:
        raise UserError(f"an answer has at least one token, not {k:g}")
    return float(k)
