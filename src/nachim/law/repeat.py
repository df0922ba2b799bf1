"""Data that repeats: what tokens are worth when they are seen more than once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nachim.spec.error import UserError

R_STAR = 15.4
"""R*, repetitions after which a further one is worth 1/e of a fresh pass (arXiv 2305.16264, sec. 6: 15.39)."""


def worth(repetitions: Any, r_star: Any, expm1: Callable[[Any], Any] = math.expm1) -> Any:
    """1 + R*·(1 - e^(-R/R*)): fresh passes that one pass and R `repetitions` of it are worth (arXiv 2305.16264, eq. 5).

    For numbers, or for arrays where `expm1` is numpy's.
    """
    return 1 - r_star * expm1(-repetitions / r_star)


def effective_tokens(tokens: float, unique_tokens: float) -> float:
    """D' = U + U·R*·(1 - e^(-R/R*)): fresh tokens that `tokens` tokens out of `unique_tokens` are worth.

    R = tokens / U - 1 counts repetitions (arXiv 2305.16264, eq. 5). Tokens that are all fresh are worth themselves.
    Raises UserError when either is not above 0.
    """
    if not (tokens > 0 and unique_tokens > 0):
        raise UserError(f"{unique_tokens:g} unique tokens cannot make {tokens:g} training tokens: both must be above 0")
    if tokens <= unique_tokens:
        return float(tokens)
    repetitions = tokens / unique_tokens - 1
    return float(unique_tokens * worth(repetitions, R_STAR))
