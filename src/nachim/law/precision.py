"""What low-precision numbers cost in loss (Kumar et al., "Scaling Laws for Precision", arXiv 2411.04330). Pure Python.

The constants are that paper's fits (appendix K, table 2), of models with at most 1.7 B parameters and 26 B tokens:
beyond them the law is a reason to measure, not a forecast. The shift terms of that table are not used here. Later work
holds the decay of the learning rate, not the tokens, responsible for what rounding costs (arXiv 2510.06213).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nachim.spec.error import UserError

C_T, GAMMA_D, GAMMA_N, GAMMA_POST = 0.0598, 0.5068, 0.3439, 0.5907
GAMMA_WEIGHTS, GAMMA_CACHE = 2.6745, 0.9578
UNTOUCHED_BITS = 16.0
"""At and above it nothing was rounded: the runs that the law is fitted on were trained in bf16."""


def rounding_penalty(params: float, tokens: float, bits: float) -> float:
    """Nat/token added by rounding the weights to `bits` after training on `tokens` (eq. 2).

    delta = C_T · D^gamma_D / N^gamma_N · exp(-P / gamma_post): it *grows* with the training tokens, so that a small
    model trained for long suffers most. Zero at 16 bits and above. Raises UserError for a value that is not above 0.
    """
    _positive(params=params, tokens=tokens, bits=bits)
    if bits >= UNTOUCHED_BITS:
        return 0.0
    return C_T * tokens**GAMMA_D / params**GAMMA_N * math.exp(-bits / GAMMA_POST)


def effective_share(*, weight_bits: float = UNTOUCHED_BITS, cache_bits: float = UNTOUCHED_BITS) -> float:
    """N_eff / N: the share of the parameters left when a model *trains* with such weights and cache (eqs. 3 and 4).

    A factor 1 - exp(-P / gamma) for each that has fewer than 16 bits. Raises UserError for bits not above 0.
    """
    _positive(weight_bits=weight_bits, cache_bits=cache_bits)
    share = 1.0
    for bits, gamma in ((weight_bits, GAMMA_WEIGHTS), (cache_bits, GAMMA_CACHE)):
        if bits < UNTOUCHED_BITS:
            share *= share_left(bits, gamma)
    return share


def share_left(bits: Any, gamma: Any, expm1: Callable[[Any], Any] = math.expm1) -> Any:
    """1 - exp(-P / gamma): share of the parameters that `bits` P leave (eq. 3); of arrays where `expm1` is numpy's."""
    return -expm1(-bits / gamma)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"{name} is {value}: the precision law needs a value above 0")
