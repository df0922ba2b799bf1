"""Corpora under one law, as `nachim fit --by group` shows them: do exponents differ, how does the optimum shift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nachim.law import Observations
from nachim.law.corpora import Corpora, Model, Test, corpora
from nachim.law.forms import Scale

BEYOND = 10.0
"""The default budget at which optima are compared, times the dearest run's."""
LEVEL = 0.05


def summarise_corpora(
    runs: Observations, law: str, scale: Scale | None, seed: int, flops: float | None
) -> dict[str, Any]:
    """Everything `nachim fit --by group` reports, as plain JSON values, at compute `flops` (10x the dearest run's)."""
    found = corpora(runs, law=law, scale=scale, seed=seed)
    at = flops or BEYOND * float(runs.flops.max())
    differ = found.exponents.p < LEVEL
    return {
        "law": found.law.name,
        "formula": found.law.formula,
        "scale": found.scale,
        "corpora": [
            {"name": name, "runs": number, "coefficients": theta}
            for name, number, theta in zip(found.names, found.runs, found.coefficients("own"), strict=True)
        ],
        "exponents_differ": _test(found.exponents),
        "floor_differs": _test(found.floor),
        "flops": at,
        "own": _optima(found, "own", at),
        "shared": _optima(found, "exponents", at),
        "verdict": _verdict(found, differ),
    }


def _test(one: Test) -> dict[str, Any]:
    return {
        "p": one.p,
        "p_f": one.p_f,
        "statistic": one.statistic,
        "freedom": [one.freedom, one.left],
        "draws": one.draws,
    }


def _optima(found: Corpora, model: Model, flops: float) -> list[dict[str, Any]]:
    exponents = found.model_exponents(model, flops)
    return [
        {
            "name": one.name,
            "exponent": exponent,
            "exponent_interval90": list(interval),
            "x": one.x,
            "x_interval90": list(one.x_interval90),
            "tokens": one.tokens,
            "tokens_interval90": list(one.tokens_interval90),
            "ratio": one.ratio,
            "ratio_interval90": list(one.ratio_interval90),
        }
        for one, (exponent, interval) in zip(found.shifts(model, flops), exponents, strict=True)
    ]


def _verdict(found: Corpora, differ: bool) -> str:
    p = f"p = {found.exponents.p:.2g}"
    if differ:
        return f"the exponents differ ({p}): the best allocation shifts with compute, read each corpus's own"
    return f"no difference of exponents is seen ({p}): one set of exponents serves all, read the shared ones"


def show_corpora(summary: dict[str, Any], path: Path) -> None:
    """Print the summary: a table a model, the tests and the verdict."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{path}: {summary['law']} law, loss = {summary['formula']}, x = {summary['scale']}",
        highlight=False,
        markup=False,
    )
    first = summary["corpora"][0]["name"]
    for model, title in (("own", "each with its own exponents"), ("shared", "exponents shared")):
        table = Table(title=f"{title}; optimum at {summary['flops']:.3g} FLOPs, 90 % intervals", title_justify="left")
        for head in ("corpus", "scale exponent", "best x", "best tokens", f"x over {first}'s"):
            table.add_column(head, justify="left" if head == "corpus" else "right")
        for one in summary[model]:
            cells = (("exponent", ".3f"), ("x", ".3g"), ("tokens", ".3g"), ("ratio", ".2f"))
            table.add_row(one["name"], *(_cell(one[key], one[f"{key}_interval90"], form) for key, form in cells))
        console.print(table)
    for key, what in (("exponents_differ", "exponents"), ("floor_differs", "loss floor E, exponents shared")):
        one = summary[key]
        console.print(
            f"same {what}? p = {one['p']:.3g} by {one['draws']} refits (p = {one['p_f']:.3g} by F)",
            highlight=False,
            markup=False,
        )
    console.print(summary["verdict"], highlight=False, markup=False)


def _cell(value: float, ends: list[float], form: str) -> str:
    if np.ptp(ends) == 0:
        return f"{value:{form}}"
    return f"{value:{form}}\n{ends[0]:{form}} to {ends[1]:{form}}"
