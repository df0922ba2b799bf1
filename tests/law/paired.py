"""Two ladders of a known truth: a baseline, and an idea worth a known multiple of its compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nachim.law import LAWS, Observations
from nachim.law.forms import Array
from tests.law.ladders import TRUTH

SHARED, OWN = 0.01, 0.002


def paired(
    rng: np.random.Generator,
    worth: Callable[[Array], Array] | float = 1.0,
    *,
    trunk: float = 0.0,
    labels: bool = False,
    cost: float = 1.0,
    shapes: int = 5,
) -> tuple[Observations, Observations]:
    """30 runs each: 5 shapes by 6 token counts. Pairs share noise of 1 %, each run has 0.2 % of its own, and those of
    one shape `trunk` in common. The idea's runs cost `cost` times as much; `worth(C)` is the truth at that cost."""
    theta, law = TRUTH["chinchilla"], LAWS["chinchilla"]
    x = np.repeat(np.geomspace(3e5, 1.2e7, shapes), 6)
    tokens = np.tile(np.geomspace(5, 160, 6), shapes) * x
    flops, share = 6 * x * tokens, theta["beta"] / (theta["alpha"] + theta["beta"])
    m = cost * (worth(cost * flops) if callable(worth) else worth)
    both = SHARED * rng.standard_normal(len(x))
    own = OWN * rng.standard_normal((2, len(x))) + trunk * np.repeat(rng.standard_normal((2, shapes)), 6, axis=1)
    clean = law.predict(theta, x, tokens), law.predict(theta, x * m**share, tokens * m ** (1 - share))
    names = {"group": np.array([f"{each:.3g}" for each in x]), "seed": np.zeros(len(x))} if labels else {}
    return (
        Observations(tokens=tokens, params=x, loss=clean[0] * np.exp(both + own[0]), **names),
        Observations(tokens=tokens, params=x, flops=cost * flops, loss=clean[1] * np.exp(both + own[1]), **names),
    )
