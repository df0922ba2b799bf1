"""Observations to forecasts: small runs in, the loss and the optimum of a big one out, with intervals.

    from nachim.law import read, study
    reading = study(read("runs.csv"))
    loss, low, high = reading.predict(x=5e9, tokens=1e11)

Never imports torch. Its names are found when they are first asked for, so that a module of pure Python, such as
`nachim.law.published`, can be had without numpy and scipy.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nachim.law.candidates import Candidates, read_candidates
    from nachim.law.corpora import Corpora, corpora
    from nachim.law.coupled import Chinchilla, Coupled
    from nachim.law.design import Advice, Target, next_runs
    from nachim.law.fit import Fit, fit
    from nachim.law.forms import Law, Scale
    from nachim.law.isoflop import IsoFlop, akima, isoflop
    from nachim.law.laws import LAWS, law_named
    from nachim.law.observe import Observations, concat, read
    from nachim.law.optima import Optima, optima
    from nachim.law.regime import Regime, check_regime
    from nachim.law.study import Allocation, Study, study
    from nachim.law.transfer import Transfer, batch_opt, data_opt, lr_opt, model_opt

_HOME = {
    "Advice": "design",
    "Allocation": "study",
    "Candidates": "candidates",
    "Chinchilla": "coupled",
    "Corpora": "corpora",
    "Coupled": "coupled",
    "Fit": "fit",
    "IsoFlop": "isoflop",
    "LAWS": "laws",
    "Law": "forms",
    "Observations": "observe",
    "Optima": "optima",
    "Regime": "regime",
    "Scale": "forms",
    "Study": "study",
    "Target": "design",
    "Transfer": "transfer",
    "akima": "isoflop",
    "batch_opt": "transfer",
    "check_regime": "regime",
    "concat": "observe",
    "corpora": "corpora",
    "data_opt": "transfer",
    "fit": "fit",
    "isoflop": "isoflop",
    "law_named": "laws",
    "lr_opt": "transfer",
    "model_opt": "transfer",
    "next_runs": "design",
    "optima": "optima",
    "read": "observe",
    "read_candidates": "candidates",
    "study": "study",
}

__all__ = [
    "LAWS",
    "Advice",
    "Allocation",
    "Candidates",
    "Chinchilla",
    "Corpora",
    "Coupled",
    "Fit",
    "IsoFlop",
    "Law",
    "Observations",
    "Optima",
    "Regime",
    "Scale",
    "Study",
    "Target",
    "Transfer",
    "akima",
    "batch_opt",
    "check_regime",
    "concat",
    "corpora",
    "data_opt",
    "fit",
    "isoflop",
    "law_named",
    "lr_opt",
    "model_opt",
    "next_runs",
    "optima",
    "read",
    "read_candidates",
    "study",
]


class _Names(types.ModuleType):
    """`fit`, `study` and `isoflop` are functions here and modules below: a module that is loaded must not hide one."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Names


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return __all__
