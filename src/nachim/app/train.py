"""The verb `nachim train`: a run, or a sealed forecast's run, in; weights and a result out."""

from __future__ import annotations

import contextlib
import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nachim.app.ask import CACHE, open_study
from nachim.app.code import function_in, is_code
from nachim.app.report import write_report
from nachim.app.view import TerminalView
from nachim.spec import Activations, Machine, Run, UserError

if TYPE_CHECKING:
    from nachim.train.onlooker import Onlooker

SECONDS = 1.0
"""How long steps are tried on one thread and on all."""


def train(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    statistics: Annotated[int | None, tyro.conf.arg(metavar="K")] = None,
    profile: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    track: Literal["tensorboard", "trackio", "wandb"] | None = None,
    activations: Annotated[Activations, tyro.conf.arg(name="")] = Activations(),
    json: bool = False,
) -> int:
    """Train one run, safe to kill at any time: the same command goes on from the last checkpoint, bit for bit.

    SIGTERM and ctrl-C end it after the step it is at, with everything saved.

    RUN is a run.json (every run folder holds one; --out says where to train), a Python file whose function `run`
    returns a Run (FILE.py:NAME calls another; see recipes/), or the folder of a study whose forecast is sealed: its
    target is trained and the verdict given. What was seen of a run is a page by `nachim report DIR`.

    Example: nachim train recipes/stdlib.py --out runs/first

    Args:
        source: What to train.
        out: Where to train it.
        statistics: Sample norms, updates, activations, attention's scores and loads of experts every K steps (0: never;
            by default some hundreds of times in a run). No weight changes by it.
        profile: Trace N steps into DIR/profile, and show the operations that took longest.
        track: Hand metrics and statistics to a tracker while it trains, from a process of its own.
        activations: Less memory for more time; no weight changes by it.
        json: Print one JSON object instead of an indented one.
    """
    with TerminalView() as view:
        if source.is_dir() and not (source / "run.json").exists():
            if (statistics, profile, track, activations) != (None, None, None, Activations()):
                raise UserError("all but --out and --json is for a single run, not for a study's target")
            study = open_study(source, view)
            result: dict[str, Any] = study.verdict()
            view.say(f"report: {write_report(study.root)}")
        else:
            result = _train_file(source, out, view, statistics, profile, track, activations)
    print(jsonlib.dumps(result) if json else jsonlib.dumps(result, indent=2))
    return 0


def _train_file(
    source: Path,
    out: Path | None,
    view: TerminalView,
    statistics: int | None = None,
    profile: int | None = None,
    track: str | None = None,
    activations: Activations = Activations(),
) -> dict[str, Any]:
    import torch

    from nachim.app.live import LiveRun
    from nachim.lab.track import tracking
    from nachim.lab.work import Place, carry_out
    from nachim.train.loop import Watch
    from nachim.train.stopping import Stopped

    run = run_of(source)
    if out is None and not source.is_dir():
        raise UserError(f"say where to train {source}: add --out DIR")
    folder, onlookers = out or source, _onlookers(statistics, profile, view)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = _threads(run, folder, view, device)
    place = Place(cache=CACHE, device=device, threads=threads, activations=activations)
    live = LiveRun(view.console, _machine(folder, view, place.device), threads)

    def say(text: str) -> None:
        live.heard(text)
        view.say(text)

    view.stage("training")
    view.quiet()
    watch = Watch(say, view.stopping, (*onlookers, live))
    try:
        with tracking(folder, track, view.say):
            return carry_out(run, folder, place, lambda run, step, loss: None, watch=watch)
    except Stopped as stopped:
        view.say(str(stopped))
        return {"stopped_at": stopped.step, "steps": run.train.steps}


def _threads(run: Run, out: Path, view: TerminalView, device: str) -> int:
    """As many as were asked for, else those that steps are fastest on; over and done runs need none."""
    from nachim.lab.speed import fastest_threads
    from nachim.train.rates import cores, threads_given

    given = threads_given()
    if given is not None:
        return given
    if device != "cpu" or (out / "result.json").exists():
        return cores()
    view.stage("speed")
    return fastest_threads(run, SECONDS)


def _machine(out: Path, view: TerminalView, device: str) -> Machine | None:
    """The peaks that utilisation is held against, measured once a run."""
    from nachim.train.machine import measure_machine

    path = out / "machine.json"
    with contextlib.suppress(UserError):  # missing or damaged: measured anew
        return Machine.load(path)
    if (out / "result.json").exists():
        return None
    view.stage("machine")
    found = measure_machine(device)
    found.save(path)
    return found


def _onlookers(statistics: int | None, profile: int | None, view: TerminalView) -> list[Onlooker]:
    from nachim.train.profile import Profile
    from nachim.train.statistics import Statistics

    if statistics is not None and statistics < 0:
        raise UserError(f"--statistics {statistics}: give the steps between two samples, or 0 for none")
    found: list[Onlooker] = [] if statistics == 0 else [Statistics(statistics)]
    return found if profile is None else [*found, Profile(profile, view.operations)]


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
