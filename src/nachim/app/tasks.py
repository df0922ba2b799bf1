"""The verb `nachim tasks`: runs with task losses and accuracies in, forecasts out, or why there are none."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from nachim.spec import UserError

if TYPE_CHECKING:
    from nachim.law.observe import Observations
    from nachim.law.tasks import Task

MANY = 8
"""From so many tasks on, fitting takes long enough for a progress bar."""


def tasks(
    obs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OBS")],
    holdout: Annotated[Path | None, tyro.conf.arg(metavar="TABLE")] = None,
    unit: Literal["bits", "nats"] = "bits",
    seed: int = 0,
    out: Annotated[Path | None, tyro.conf.arg(metavar="PAGE.html")] = None,
    json: bool = False,
) -> int:
    """Forecast what accuracy a task will have at scale, from the losses of small runs, or say why that cannot be done.

    OBS is a CSV or parquet table, one row a run and task: `task_loss` (of the right answer, bits per byte or nats),
    `accuracy` (0 to 1), and what the run cost: `flops`, or `tokens` with `params` or `flops_per_token`. Besides, where
    known: `chance` (of guessing right, 0 by default), `items` (questions in the task), and the task's name in `task`.

    Two steps: a law from scale to task loss, and curves from task loss to accuracy between chance and 1. No forecast is
    made where accuracy is at chance in all runs, does not rise as the loss falls, or rises no more than its noise.
    `leap` says of the same runs how much of a sudden rise is the metric's doing: about one less than the number of runs
    for an even rise, far more for a leap; `linear` counts tokens right, `exact` whole answers of 10.

    Example: nachim tasks small.csv --holdout large.csv --out tasks.html

    Args:
        obs: Table of runs to learn from.
        holdout: Runs to forecast, in the columns of OBS but for task_loss and accuracy; with accuracy, what they came
            out as is shown beside. Without task names, its runs are forecast for every task.
        unit: What task_loss counts: bits a byte, or nats a token. Only the scoring of answers needs it.
        seed: Seed of the draws.
        out: Write a page with every task's curve, and the same runs under linear and non-linear scoring.
        json: Print one JSON object instead of tables.
    """
    from rich.console import Console
    from rich.progress import track

    from nachim.law.tasks import read_targets, read_tasks
    from nachim.law.tasks import tasks as fit_tasks

    runs = read_tasks(obs)
    targets = read_targets(holdout, runs.keys()) if holdout else {}
    console = Console(stderr=True)
    quiet = len(runs) < MANY or not console.is_terminal
    watched = track(runs.items(), "fitting tasks", len(runs), console=console, transient=True, disable=quiet)
    found = fit_tasks(watched, seed)
    told = {name: summarise(task, targets.get(name), unit, seed) for name, task in found.items()}
    summary = {"tasks": told, "holdout": held_out(told)}
    if out is not None:
        from nachim.app.tasks_page import write_page

        write_page(out, obs, found, summary, unit)
    if json:
        print(jsonlib.dumps(summary))
    else:
        _show(summary, out)
    return 0


def summarise(
    task: Task, targets: Observations | None, unit: Literal["bits", "nats"] = "bits", seed: int = 0
) -> dict[str, Any]:
    """Everything said of one task, as plain JSON values; accuracies and noise as shares of 1."""
    from nachim.law.scoring import leaps

    choice, law = task.choice, task.law
    return {
        "runs": len(task.runs),
        "accepted": task.reason is None,
        "reason": task.reason,
        "chance": task.scores.chance,
        "noise": {"items": task.binomial, "scatter": choice.best.scatter if choice else None},
        "rise": task.rise,
        "law": law.name if law else None,
        "curve": choice.best.curve.name if choice else None,
        "coefficients": choice.best.coefficients if choice else None,
        "weights": dict(choice.weights) if choice else None,
        "stretch": choice.factor if choice else None,
        "leap": leaps(task.scores.loss[np.argsort(task.runs.flops)], bits=unit == "bits"),
        "forecasts": [] if task.reason or targets is None else _forecasts(task, targets, seed),
    }


def _forecasts(task: Task, targets: Observations, seed: int) -> list[dict[str, Any]]:
    """One forecast for each target run, with what it came out as where that is known."""
    try:
        forecasts = task.predict_all(targets, seed)
    except UserError as error:
        raise UserError(f"task {task.name!r}: {error}") from None
    known = targets.extra.get("accuracy")
    return [
        {
            "flops": float(targets.flops[row]),
            "tokens": float(targets.tokens[row]),
            **asdict(one),
            "accepted": one.reason is None,
            "actual": None if known is None else float(known[row]),
        }
        for row, one in enumerate(forecasts)
    ]


def held_out(told: Mapping[str, dict[str, Any]]) -> dict[str, float] | None:
    """Over all forecasts that can be judged: how far off, in points, and how many inside; None where there is none."""
    rows = [row for task in told.values() for row in task["forecasts"] if row["accepted"] and row["actual"] is not None]
    if not rows:
        return None
    off = np.array([100 * abs(row["accuracy"] - row["actual"]) for row in rows])
    inside = [row["low"] <= row["actual"] <= row["high"] for row in rows]
    return {
        "n": len(rows),
        "mean_points": float(off.mean()),
        "median_points": float(np.median(off)),
        "worst_points": float(off.max()),
        "coverage90": float(100 * np.mean(inside)),
        "median_width": float(np.median([100 * (row["high"] - row["low"]) for row in rows])),
    }


def _show(summary: dict[str, Any], out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="accuracy forecast from task loss, 90 % intervals", title_justify="left")
    heads = (("task", "left"), ("runs", "right"), ("target, FLOP", "right"), ("accuracy, %", "right"))
    for head, side in (*heads, ("came out", "right"), ("curve", "left")):
        table.add_column(head, justify=side)  # type: ignore[arg-type]
    reasons = []
    for name, task in summary["tasks"].items():
        reasons += [f"{name}: no forecast, {task['reason']}"] if task["reason"] else []
        if not task["forecasts"]:
            table.add_row(name, str(task["runs"]), "", "none" if task["reason"] else "ready", "", task["curve"] or "")
        for row in task["forecasts"]:
            point = f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"
            actual = "" if row["actual"] is None else f"{100 * row['actual']:.1f}"
            said = point if row["accepted"] else "none"
            table.add_row(name, str(task["runs"]), f"{row['flops']:.3g}", said, actual, task["curve"])
            reasons += [f"{name} at {row['flops']:.3g} FLOP: no forecast, {row['reason']}"] if row["reason"] else []
    console.print(table)
    for line in reasons:
        console.print(line, highlight=False, markup=False)
    if held := summary["holdout"]:
        console.print(
            f"held out: {held['n']} forecasts, off by {held['mean_points']:.1f} points on average (worst "
            f"{held['worst_points']:.1f}), {held['coverage90']:.0f} % inside their 90 % interval, of median width "
            f"{held['median_width']:.1f} points",
            highlight=False,
        )
    if out is not None:
        console.print(f"page: {out}", highlight=False, markup=False)
