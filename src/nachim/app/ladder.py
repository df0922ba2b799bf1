"""The verb `nachim ladder`: small real runs in, a table of observations out."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from nachim.app.ask import Ask
from nachim.app.corpora import show_corpora, summarise_corpora
from nachim.app.view import TerminalView, clock
from nachim.spec import UserError


def ladder(
    ask: Annotated[Ask, tyro.conf.arg(name="")] = Ask(),
    dry_run: bool = False,
    active: bool = False,
    within: float | None = None,
    json: bool = False,
) -> int:
    """Climb a ladder: budgets by real shapes, each a training run, as many as fit beside a target ten times dearer.

    The table of what they measured is DIR/observations.csv; `nachim fit` reads it, `nachim forecast DIR` seals a
    forecast from it. With --dry-run nothing is trained: it prints runs, FLOP, time and disk first.

    With --data given several times, the same shapes and budgets are climbed on each corpus, the minutes shared evenly;
    DIR/observations.csv names the corpus in `group`, and whether their exponents differ is tested.

    With --active it makes the cheapest runs that determine a law, then again and again those that tell most about the
    loss at the target for their FLOP, until --within PERCENT is reached, nothing left helps, or the ladder's time is
    spent. DIR/active.json says which and why.

    Example: nachim ladder --minutes 10 --dry-run

    Args:
        ask: What to study.
        dry_run: Say what it would take, and train nothing.
        active: Choose the runs of the plan as it goes, instead of making all.
        within: Stop once the loss at the target is known to so many percent either way (with --active).
        json: Print one JSON object instead of a table.
    """
    if within is not None and not active:
        raise UserError("--within says when an active ladder stops: give --active with it")
    if active and len(ask.data) > 1:
        raise UserError("--active chooses the runs of one corpus: give one --data, or leave it out")
    if len(ask.data) > 1:
        return _climb_corpora(ask, dry_run, json)
    return _climb_one(ask, dry_run, active, within, json)


def _climb_one(ask: Ask, dry_run: bool, active: bool, within: float | None, json: bool) -> int:
    """`nachim ladder` on one corpus."""
    from nachim.lab.active import climb
    from nachim.lab.size import describe

    with TerminalView() as view:
        study = ask.study(view)
        study.claim()
        plan = study.plan()
        planned = study.make_ladder(plan)
        if not dry_run:
            study.sweep(plan)
            if active:
                planned = climb(study, plan, within)
            else:
                study.ladder(plan)
    about = {
        "directory": str(study.root),
        "runs": len(planned.runs),
        "flops": planned.flops,
        "seconds": plan.sweep_seconds + plan.ladder_seconds,
        "disk_bytes": plan.disk,
        "observations": None if dry_run else str(study.root / "observations.csv"),
    }
    if json:
        print(jsonlib.dumps(about))
        return 0
    table = Table("", "", show_header=False, title=f"{study.root}")
    for name, value in describe(plan):
        table.add_row(name, value)
    table.add_row("runs", f"{len(planned.runs)}, {planned.flops:.3g} FLOP, about {clock(about['seconds'])}")
    table.add_row("next", "nachim ladder (without --dry-run)" if dry_run else f"nachim forecast {study.root}")
    Console().print(table)
    return 0


def _climb_corpora(ask: Ask, dry_run: bool, json: bool) -> int:
    """`nachim ladder` on several corpora: one plan, one ladder each, one table of all, and the joint fit."""
    from nachim.lab.corpora import climb_all, plan_all

    root, table = ask.folder(), ask.folder() / "observations.csv"
    with TerminalView() as view:
        studies = {name: one.study(view) for name, one in ask.each().items()}
        plan = plan_all(studies)
        runs = sum(len(study.make_ladder(plan).runs) for study in studies.values())
        observed = None if dry_run else climb_all(studies, plan, table)
    about: dict[str, Any] = {
        "directory": str(root),
        "corpora": list(studies),
        "runs": runs,
        "seconds": len(studies) * (plan.sweep_seconds + plan.ladder_seconds),
        "disk_bytes": len(studies) * plan.disk,
        "observations": None if observed is None else str(table),
        "law": None if observed is None else summarise_corpora(observed, "auto", None, ask.seed, None),
    }
    if json:
        print(jsonlib.dumps(about))
    elif about["law"]:
        show_corpora(about["law"], table)
    else:
        print(f"{root}: {runs} runs on {', '.join(studies)}, about {clock(about['seconds'])}")
    return 0
