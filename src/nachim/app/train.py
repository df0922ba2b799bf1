"""The verb `nachim train`: a run, or a sealed forecast's run, in; weights and a result out."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import Annotated, Any

import tyro

from nachim.app.ask import CACHE, open_study
from nachim.app.code import function_in, is_code
from nachim.app.report import write_report
from nachim.app.view import TerminalView
from nachim.spec import Run, UserError


def train(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    json: bool = False,
) -> int:
    """Train one run, safe to kill at any time: the same command goes on from the last checkpoint, bit for bit.

    SIGTERM and ctrl-C end it after the step it is at, with everything saved.

    RUN is a run.json (every run folder holds one; --out says where to train), a Python file whose function `run`
    returns a Run (FILE.py:NAME calls another; see recipes/), or the folder of a study whose forecast is sealed: its
    target is trained and the verdict given.

    Example: nachim train recipes/stdlib.py --out runs/first
    """
    with TerminalView() as view:
        if source.is_dir() and not (source / "run.json").exists():
            study = open_study(source, view)
            result: dict[str, Any] = study.verdict()
            view.say(f"report: {write_report(study.root)}")
        else:
            result = _train_file(source, out, view)
    print(jsonlib.dumps(result) if json else jsonlib.dumps(result, indent=2))
    return 0


def _train_file(source: Path, out: Path | None, view: TerminalView) -> dict[str, Any]:
    import torch

    from nachim.lab.launch.local import event_of
    from nachim.lab.work import Place, carry_out
    from nachim.train.loop import Watch
    from nachim.train.stopping import Stopped, stop_on_signal

    run = run_of(source)
    if out is None and not source.is_dir():
        raise UserError(f"say where to train {source}: add --out DIR")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    place = Place(cache=CACHE, device="cuda" if torch.cuda.is_available() else "cpu", threads=threads)
    view.stage("training")

    def on_step(run: Run, step: int, loss: float) -> None:
        view.event(event_of("run", run, step, loss, threads))

    with stop_on_signal() as stopping:
        try:
            return carry_out(run, out or source, place, on_step, watch=Watch(view.say, stopping))
        except Stopped as stopped:
            view.say(str(stopped))
            return {"stopped_at": stopped.step, "steps": run.train.steps}


def run_of(source: Path) -> Run:
    """The run that `source` names: a run.json, a folder with one, or a Python file (FILE.py, FILE.py:FUNCTION).

    Raises UserError when there is none.
    """
    if not is_code(source):
        return Run.load(source / "run.json" if source.is_dir() else source)
    name, recipe = function_in(source, "run")
    run = recipe()
    if not isinstance(run, Run):
        raise UserError(f"{source}: {name}() returns {run!r}, which is not a nachim.spec.Run")
    return run
