"""The verb `nachim quickstart`: the whole line, from minutes to a verdict."""

from __future__ import annotations

import json as jsonlib
import sys
from typing import Annotated, Any

import tyro

from nachim.app.ask import Ask
from nachim.app.report import write_report
from nachim.app.view import TerminalView


def quickstart(ask: Annotated[Ask, tyro.conf.arg(name="")] = Ask(), json: bool = False) -> int:
    """Plan, climb, fit, seal, train, judge: everything nachim does, in the minutes you give it.

    It measures this machine, trains a ladder of small models with their learning rate and batch swept, fits a scaling
    law, seals a forecast of a model at least 10 times dearer than the ladder's dearest run, trains that model, and
    holds the forecast against the result. A page with every figure is written at the end. Killed, it goes on when
    started again.

    Example: nachim quickstart --minutes 10
    """
    with TerminalView() as view:
        study = ask.study(view)
        try:
            study.run()
        except Exception:
            if (study.root / "refused.json").exists():
                view.say(f"report: {write_report(study.root)}")
            raise
        page = write_report(study.root)
        summary = {**study.summary(), "report": str(page)}
    if json:
        print(jsonlib.dumps(summary))
    else:
        print(told(summary), file=sys.stdout)
    return 0


def told(summary: dict[str, Any]) -> str:
    """The summary as a person would tell it."""
    forecast, measured = summary["forecast"], summary["measured"]["bpb"]
    inside = "inside" if summary["inside"] else "outside"
    return (
        f"forecast  {forecast['bpb']:.4f} bpb, 90 % interval {forecast['low']:.4f} to {forecast['high']:.4f}, "
        f"sealed {forecast['sealed_at']} ({forecast['sha256'][:12]})\n"
        f"measured  {measured:.4f} bpb at {forecast['flops']:.3g} FLOP: {inside} the interval, "
        f"{summary['error_percent']:+.2f} % from the forecast\n"
        f"ladder    {summary['ladder']['runs']} runs, {summary['ladder']['flops']:.3g} FLOP; law: {summary['law']}\n"
        f"report    {summary['report']}"
    )
