"""Every law by name. A new one is a file of its own and one line here."""

from __future__ import annotations

from nachim.law.axis import FlopsPower, ScalePower, TokensPower
from nachim.law.bits import Precision, WeightPrecision
from nachim.law.constrained import Constrained
from nachim.law.coupled import Chinchilla, Coupled
from nachim.law.experts import Granularity, Routing, Sparsity
from nachim.law.farseer import Farseer
from nachim.law.forms import Law
from nachim.law.kaplan import Kaplan
from nachim.law.overtraining import Overtraining
from nachim.law.vocabulary import Vocabulary
from nachim.spec.error import UserError, nearest

LAWS: dict[str, Law] = {law.name: law for law in (Chinchilla(), Coupled())}
"""The laws over scale and tokens for any table, among which "auto" chooses; fewest coefficients first."""
SPECIAL = (
    Kaplan(),
    Overtraining(),
    Farseer(),
    Constrained(),
    Routing(),
    Granularity(),
    Sparsity(),
    WeightPrecision(),
    Precision(),
    Vocabulary(),
    ScalePower(),
    TokensPower(),
    FlopsPower(),
)
ALL: dict[str, Law] = LAWS | {law.name: law for law in SPECIAL}
"""Every law that can be fitted by name, also those that read other columns."""
LARGER = {name: ALL[name] for name in ("farseer",)}
"""Laws that take part in the forecasts of tables large enough for them (see `nachim.law.study.RUNS_EACH`), not in what
is reported of coefficients and optima: they have none that mean as much."""


def law_named(name: str) -> Law:
    """The law called `name`. Raises UserError with the nearest name when there is none."""
    if name not in ALL:
        raise UserError(f"no law is called {name!r}{nearest(name, ALL)}")
    return ALL[name]
