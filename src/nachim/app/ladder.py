"""The verb `nachim ladder`: small real runs in, a table of observations out."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from nachim.app.ask import Ask
from nachim.app.view import TerminalView, clock


def ladder(ask: Annotated[Ask, tyro.conf.arg(name="")] = Ask(), dry_run: bool = False, json: bool = False) -> int:
    """Climb a ladder: budgets by real shapes, each a training run, as many as fit beside a target ten times dearer.

    The table of what they measured is DIR/observations.csv; `nachim fit` reads it, `nachim forecast DIR` seals a
    forecast from it. With --dry-run nothing is trained: it prints runs, FLOP, time and disk first.

    Example: nachim ladder --minutes 10 --dry-run
    """
    from nachim.lab.size import describe

    with TerminalView() as view:
        study = ask.study(view)
        study.claim()
        plan = study.plan()
        planned = study.make_ladder(plan)
        if not dry_run:
            study.sweep(plan)
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
