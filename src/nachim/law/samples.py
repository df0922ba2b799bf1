"""Many answers to one question: what n samples of a small model are worth against one of a large. Pure Python.

All of it supposes a verifier that knows a right answer when it sees one, and independent samples of one accuracy per
question. Accuracy varies over questions, and pass@n of a set is then *below* what its mean accuracy gives (1-(1-p)^n
is concave in p): the accuracy a sample needs is then more than what is returned.
"""

from __future__ import annotations

import math

from nachim.spec.error import UserError


def accuracy_needed(rival: float, samples: float) -> float:
    """Accuracy a sample at which `samples` answers equal one answer of a model right with chance `rival`.

    The inverse of pass@n = 1-(1-p)^n (the expectation behind arXiv 2107.03374, eq. 1): 1-(1-p)^(1/n).
    """
    _chance(rival)
    if not samples >= 1:
        raise UserError(f"samples is {samples}: a question needs at least one answer")
    return 1.0 if rival == 1 else -math.expm1(math.log1p(-rival) / samples)


def _chance(value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"accuracy is {value}: it is a chance, from 0 to 1")
