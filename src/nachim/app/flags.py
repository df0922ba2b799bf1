"""What is odd about a table of runs, as `nachim fit` says it: flagged rows, mixed budgets, runs that were met twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from nachim.law import Observations
from nachim.law.flag import Flag, conventions, inside, seen

SHOWN = 5


def summarise_flags(
    runs: Observations, flags: Sequence[Flag], dropped: bool, unseen: Observations | None, flops: float | None
) -> dict[str, Any]:
    """The flags and whether they were left out, and under `oddities` a sentence for all else that is odd.

    `unseen` are runs held out, `flops` a compute at which an optimum was asked for.
    """
    target = None if flops is None else inside(runs, flops)
    return {
        "flags": [dataclasses.asdict(flag) for flag in flags],
        "dropped": dropped,
        "oddities": conventions(runs) + (seen(runs, unseen) if unseen else []) + ([target] if target else []),
    }


def flag_lines(summary: dict[str, Any]) -> list[str]:
    """The first flags, a line each, and what was done with them."""
    flags = [Flag(**flag) for flag in summary["flags"]]
    lines = [f"flagged: {flag}" for flag in flags[:SHOWN]]
    if len(flags) > SHOWN:
        lines.append(f"flagged: {len(flags) - SHOWN} rows more, which --json lists")
    if flags:
        done = (
            "left out"
            if summary["dropped"]
            else "fitted, with a bounded pull on the law; --drop-flagged leaves them out"
        )
        lines.append(f"flagged rows are {done}")
    return lines + [f"warning: {text}" for text in summary["oddities"]]
