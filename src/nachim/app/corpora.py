"""Corpora under one law, as `nachim fit --by group` shows them: do exponents differ, how does the optimum shift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nachim.app.flags import SHOWN, summarise_flags
from nachim.law import Observations
from nachim.law.corpora import Corpora, Model, Shift, Test, corpora
from nachim.law.flag import Flag, find
from nachim.law.forms import Scale

BEYOND = 10.0
"""The default budget at which optima are compared, times the dearest run's."""
LEVEL = 0.05


def summarise_corpora(
    runs: Observations, law: str, scale: Scale | None, seed: int, flops: float | None
) -> dict[str, Any]:
    """Everything `nachim fit --by group` reports, as plain JSON values, at compute `flops` (10x the dearest run's)."""
    found = corpora(runs, law=law, scale=scale, seed=seed)
    at = BEYOND * float(runs.flops.max()) if flops is None else flops
    own = zip(found.names, found.runs, found.coefficients("own"), found.intervals("own"), strict=True)
    return {
        "law": found.law.name,
        "formula": found.law.formula,
        "scale": found.scale,
        "corpora": [
            {
                "name": name,
                "runs": number,
                "coefficients": theta,
                "interval90": {each: list(ends) for each, ends in intervals.items()},
            }
            for name, number, theta, intervals in own
        ],
        "exponents_differ": _test(found.exponents),
        "floor_differs": _test(found.floor),
        "flops": at,
        "own": _optima(found, "own", at),
        "shared": _optima(found, "exponents", at),
        "verdict": _verdict(found, at),
    } | summarise_flags(runs, find(runs, found.scale), dropped=False, unseen=None, flops=None)


def _test(one: Test) -> dict[str, Any]:
    return {"p": one.p, "statistic": one.statistic, "freedom": one.freedom, "draws": one.draws}


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
            "tokens_per_x": one.tokens_per_x,
            "tokens_per_x_interval90": list(one.tokens_per_x_interval90),
            "ratio": one.ratio,
            "ratio_interval90": list(one.ratio_interval90),
        }
        for one, (exponent, interval) in zip(found.shifts(model, flops), exponents, strict=True)
    ]


def _verdict(found: Corpora, flops: float) -> list[str]:
    """Which model to read, and from it how each corpus's optimum lies beside the first's."""
    p, differ = f"p = {found.exponents.p:.2g}", found.exponents.p < LEVEL
    if differ:
        said = f"the exponents differ ({p}): the best allocation shifts with compute, read each corpus's own"
    else:
        said = f"no difference of exponents is seen ({p}): one set of exponents serves all, read the shared ones"
    first, *others = found.shifts("own" if differ else "exponents", flops)
    return [said, *(_shifted(one, first) for one in others)]


def _shifted(one: Shift, first: Shift) -> str:
    low, high = one.ratio_interval90
    ratio = f"{one.ratio:.2f} ({low:.2f} to {high:.2f}) times {first.name}'s"
    if low <= 1 <= high:
        turn = "no shift that these runs tell from none"
    else:
        turn = "larger models on fewer tokens" if low > 1 else "smaller models on more tokens"
    return f"{one.name}: at {one.flops:.3g} FLOPs its best x is {ratio}: {turn}"


def show_corpora(summary: dict[str, Any], path: Path) -> None:
    """Print the summary: the coefficients, a table of optima a model, the tests, the verdict, and what is flagged."""
    from rich.console import Console

    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    say(f"{path}: {summary['law']} law, loss = {summary['formula']}, x = {summary['scale']}")
    _show_coefficients(console, summary["corpora"])
    for model, title in (("own", "each with its own exponents"), ("shared", "exponents shared")):
        _show_optima(console, summary, model, title)
    for key, what in (("exponents_differ", "exponents"), ("floor_differs", "loss floor E, exponents shared")):
        one = summary[key]
        say(f"same {what}? p = {one['p']:.2g} by {one['draws']} refits")
    for line in summary["verdict"] + _flagged(summary):
        say(line)


def _flagged(summary: dict[str, Any]) -> list[str]:
    flags = [Flag(**flag) for flag in summary["flags"]]
    lines = [f"flagged: {flag}" for flag in flags[:SHOWN]]
    if len(flags) > SHOWN:
        lines.append(f"flagged: {len(flags) - SHOWN} rows more, which --json lists")
    if flags:
        lines.append("flagged rows are fitted, with a bounded pull on the law; a weight of 0 leaves a row out")
    return lines + [f"warning: {text}" for text in summary["oddities"]]


def _show_coefficients(console: Any, found: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title="each corpus by itself, 90 % intervals", title_justify="left")
    for head in ("corpus", "runs", *found[0]["coefficients"]):
        table.add_column(head, justify="left" if head == "corpus" else "right")
    for one in found:
        cells = (_cell(value, one["interval90"][name], ".3g") for name, value in one["coefficients"].items())
        table.add_row(one["name"], str(one["runs"]), *cells)
    console.print(table)


def _show_optima(console: Any, summary: dict[str, Any], model: str, title: str) -> None:
    from rich.table import Table

    first, unit = summary["corpora"][0]["name"], "param" if summary["scale"] == "params" else "x"
    title = f"{title}; optimum at {summary['flops']:.3g} FLOPs, 90 % intervals under this law"
    table = Table(title=title, title_justify="left")
    for head in ("corpus", "scale exponent", "best x", f"tokens per {unit}", f"x over {first}'s"):
        table.add_column(head, justify="left" if head == "corpus" else "right")
    for one in summary[model]:
        cells = (("exponent", ".3f"), ("x", ".3g"), ("tokens_per_x", ".3g"), ("ratio", ".2f"))
        table.add_row(one["name"], *(_cell(one[key], one[f"{key}_interval90"], form) for key, form in cells))
    console.print(table)


def _cell(value: float, ends: list[float], form: str) -> str:
    if np.ptp(ends) == 0:
        return f"{value:{form}}"
    return f"{value:{form}}\n{ends[0]:{form}} to {ends[1]:{form}}"
