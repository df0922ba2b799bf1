"""The verb `nachim backtest`: how well would each law have forecast the dearest runs of published tables?"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from nachim.law.backtest import CUTOFFS, EVERY, HELD_OUT, DataSet, Trial, backtest, data_sets, pooled
from nachim.law.laws import law_named
from nachim.spec.error import UserError


def backtest_(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="dir")],
    law: tuple[str, ...] = EVERY,
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Hold every law against published runs: fit the cheap ones, forecast the dearest, count the misses.

    DIR holds tables of finished runs, such as SET/observations.csv, each as for `nachim fit`. Of every table the
    dearest runs are held out by whole budgets, a tenth at least. Each law is fitted to the rest, and to the cheapest 70
    and 50 % of it, and forecasts the same held-out runs each time. `auto` is what `nachim fit` does.

    The rule is the same for every table: runs that repeat their data more than four times are left out; of a sweep
    over learning rate and batch the best run of each scale and token count is kept; a `group` is a set of its own where
    one law cannot describe them together. What was left out is said.

    Example: nachim backtest tables/ --out backtest.html

    Args:
        folder: Folder of tables.
        law: What to try; by default the choice among laws (auto) and every law over scale and tokens.
        seed: Seed of the bootstraps.
        out: Also write a page with the picture of it to this file.
        json: Print one JSON object instead of tables.
    """
    for name in law:
        if name != "auto":
            law_named(name)
    sets, skipped = data_sets(folder)
    trials = _run(sets, law, seed)
    summary = summarise(sets, trials, skipped, law)
    if out:
        from nachim.app.backtest_page import write_page

        write_page(out, sets, trials, summary)
    if json:
        print(jsonlib.dumps(summary))
    else:
        _show(sets, trials, summary)
        if out:
            print(out)
    return 0


def _run(sets: Sequence[DataSet], laws: Sequence[str], seed: int) -> list[Trial]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("backtest", total=len(sets) * len(laws) * len(CUTOFFS))

        def done(each: Trial) -> None:
            progress.update(task, advance=1, description=f"{each.data}, {each.law}")

        return backtest(sets, laws, seed, done)


def summarise(
    sets: Sequence[DataSet], trials: Sequence[Trial], skipped: Sequence[str], laws: Sequence[str]
) -> dict[str, Any]:
    """Everything `nachim backtest` reports, as plain JSON values: by set the leading law's forecast from all cheaper
    runs, every trial, and all sets together by law and cut-off. Raises UserError when no forecast could be made."""
    together = [found for name in laws for cutoff in CUTOFFS if (found := pooled(trials, name, cutoff))]
    if not together:
        raise UserError(f"no forecast could be made: {trials[0].data}: {trials[0].reason}")
    return {
        "sets": {data.name: _set(data, [each for each in trials if each.data == data.name]) for data in sets},
        "pooled": [asdict(each) for each in together],
        "skipped": list(skipped),
    }


def _set(data: DataSet, trials: Sequence[Trial]) -> dict[str, Any]:
    """The first law asked for, at the widest cut-off, in front; every trial behind it."""
    first = _plain(trials[0])
    first["asked"], first["law"] = first["law"], first.pop("chosen")
    return {**first, "runs": len(data.runs), "notes": list(data.notes), "trials": [_plain(each) for each in trials]}


def _plain(trial: Trial) -> dict[str, Any]:
    found = {name: value for name, value in asdict(trial).items() if name != "data"}
    if trial.reason:
        return {name: None if value != value else value for name, value in found.items()}
    return found


HEADS = ("set", "law", "fitted", "held out", "times dearer", "error, %", "inside, %", "width, %", "seconds")


def rows_of(sets: Sequence[DataSet], trials: Sequence[Trial], law: str, cutoff: float = 1.0) -> list[list[str]]:
    """A row under HEADS for each set: the forecast of `law`, "none" where it made none (see `reasons`)."""
    rows = []
    for data in sets:
        one = next(t for t in trials if (t.data, t.law, t.cutoff) == (data.name, law, cutoff))
        counts = [data.name, one.chosen or "none", str(one.fitted), str(one.held_out)]
        if one.reason:
            rows.append([*counts, *[""] * 5])
        else:
            numbers = (f"{one.reach:.1f}", f"{one.mape:.2f}", f"{one.coverage90:.0f}", f"{one.median_width:.2f}")
            rows.append([*counts, *numbers, f"{one.seconds:.2f}"])
    return rows


def reasons(trials: Sequence[Trial], law: str, cutoff: float = 1.0) -> list[str]:
    """A line for each set of which `law` made no forecast: why."""
    return [f"{one.data}: {one.reason}" for one in trials if one.reason and (one.law, one.cutoff) == (law, cutoff)]


POOLED_HEADS = (
    *("law", "cut-off", "sets", "median, %", "worst, %", "inside, %", "least, %"),
    *("width, %", "poor", "seconds"),
)


def pooled_rows(summary: dict[str, Any]) -> list[list[str]]:
    """A row under POOLED_HEADS for each law and cut-off."""
    return [
        [
            one["law"],
            f"{one['cutoff']:.0%}",
            str(one["sets"]),
            f"{one['median']:.2f}",
            f"{one['worst']:.2f}",
            f"{one['coverage90']:.0f}",
            f"{one['least_coverage']:.0f}",
            f"{one['median_width']:.2f}",
            str(one["poor"]),
            f"{one['seconds']:.2f}",
        ]
        for one in summary["pooled"]
    ]


def verdict(summary: dict[str, Any]) -> str:
    """The first law's pooled result in a sentence."""
    one = summary["pooled"][0]
    name = "the choice among laws" if one["law"] == "auto" else f"the {one['law']} law"
    return (
        f"Over {one['sets']} sets {name} forecast the dearest runs with a median error of {one['median']:.2f} % (worst "
        f"{one['worst']:.2f} %); {one['coverage90']:.0f} % of {one['held_out']} runs lay inside their 90 % intervals."
    )


def _show(sets: Sequence[DataSet], trials: Sequence[Trial], summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    first = summary["pooled"][0]["law"]
    rule = f"{first}: cheaper runs fitted, at least the dearest {HELD_OUT:.0%} held out"
    for title, heads, rows, whole in (
        (rule, HEADS, rows_of(sets, trials, first), 1),
        ("all sets together", POOLED_HEADS, pooled_rows(summary), 0),
    ):
        table = Table(title=title, title_justify="left")
        for place, head in enumerate(heads):
            table.add_column(head, justify="left" if place == 0 else "right", overflow="fold", no_wrap=place == whole)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(verdict(summary), highlight=False)
    for data in sets:
        for note in data.notes:
            console.print(f"{data.name}: {note}", highlight=False, markup=False)
    for line in reasons(trials, first):
        console.print(f"no forecast of {line}", highlight=False, markup=False)
    for line in summary["skipped"]:
        console.print(f"skipped: {line}", highlight=False, markup=False)
