"""The verb `nachim data build`: a recipe in; shards, tokens, a ledger and a card out."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nachim.app.ask import CACHE
from nachim.app.card_page import write_page
from nachim.app.code import function_in
from nachim.app.view import TerminalView
from nachim.data.card import card, write_card
from nachim.data.pack import Batches
from nachim.data.pipeline import Built, Pipeline, build
from nachim.data.pool import Runner
from nachim.data.prepare import prepare
from nachim.data.work import modules_of
from nachim.spec import UserError

PAGE = "card.html"
REASONS = 5


@dataclass(frozen=True)
class Build:
    """Carry out a recipe: read its sources, pass every document through its stages, and write down what became of each.

    RECIPE is a Python file whose function `pipeline` returns a Pipeline (FILE.py:NAME calls another; see recipes/). DIR
    then has `shards/` (the documents that stayed, which a run reads as Files(path="DIR/shards")), `ledger.json` (rows
    in, out and dropped by reason, stage by stage), `stages/` (what each stage left, and every row it dropped by name),
    `card.html` (the page to look at) and, where the recipe asks for tokens, `data.json` (the `data` of a run).

    Kill it whenever you like: the same command goes on. After a change of the recipe, or of a file it reads, only what
    that changes is done again. The bytes do not depend on the number of workers.

    Example: nachim data build recipes/clean_stdlib.py --out clean --workers 2
    """

    recipe: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """FILE.py or FILE.py:NAME."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder that takes everything."""
    workers: int = 0
    """Processes at work, jobs of the array, or cores of a Ray begun here; 0 takes one for every core here."""
    on: Literal["here", "slurm", "ray"] = "here"
    """Where: this machine, a Slurm array (`nachim[slurm]`), or Ray (`nachim[ray]`). All nodes must see DIR."""
    slurm: tuple[str, ...] = ()
    """Options of the array as submitit names them: slurm_partition=cpu timeout_min=60 mem_gb=8."""
    address: str | None = None
    """Of the Ray cluster; without it one is begun on this machine."""
    cache: Annotated[Path, tyro.conf.arg(metavar="DIR")] = CACHE
    """Where tokens are kept: `nachim train` looks for them in ~/.cache/nachim."""
    json: bool = False
    """Print one JSON object: the card."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was made, for a script and for a person."""
        began = time.monotonic()
        name, recipe = function_in(self.recipe, "pipeline")
        pipeline = recipe()
        if not isinstance(pipeline, Pipeline):
            raise UserError(f"{name} in {self.recipe} returned a {type(pipeline).__name__}, not a Pipeline")
        built = build(pipeline, self.out, self.workers or cores(), listen(view), self._elsewhere(pipeline))
        batches = tokenised(built, self.cache, view)
        command = shlex.join(["nachim", *sys.argv[1:]])
        told = card(built, batches, command, time.monotonic() - began)
        write_card(told, self.out)
        write_page(self.out / PAGE, told)
        return told, said(told, self.out)

    def _elsewhere(self, pipeline: Pipeline) -> Runner | None:
        """What carries out tasks on a cluster."""
        if self.on == "here":
            return None
        from nachim.lab.launch.tasks import RayTasks, SlurmArray

        modules = modules_of(pipeline)
        if self.on == "ray":
            return RayTasks(modules, self.address, self.workers or cores())
        return SlurmArray(self.out / "jobs", self.workers or cores(), modules, **options(self.slurm))


def options(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as a dictionary, numbers as such. Raises UserError for another form."""
    told: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise UserError(f"--slurm {word!r} is not NAME=VALUE")
        told[name] = int(value) if value.isdigit() else value
    return told


def tokenised(built: Built, cache: Path, view: TerminalView) -> Batches | None:
    """The sequences of what was built, if its pipeline asks for tokens; a run takes DIR/data.json for its `data`."""
    data = built.data
    path = built.out / "data.json"
    if data is None:
        path.unlink(missing_ok=True)
        return None
    hear = listen(view)
    prepared = prepare(data, cache, lambda stage, done: hear(f"tokens: {stage}", done))
    replace(data, fingerprint_of_tokens=prepared.fingerprint).save(path)
    return Batches(prepared, data)


def listen(view: TerminalView) -> Any:
    """Shows each stage as it begins, and the share of it done."""
    last = ""

    def hear(stage: str, done: float) -> None:
        nonlocal last
        if stage != last:
            last = stage
            view.stage(stage)
        view.share(stage, done)

    return hear


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def said(told: dict[str, Any], out: Path) -> str:
    """What a person reads at the end."""
    lines = []
    for stage in told["stages"]:
        kept, came = stage["kept"], stage["came"]
        lines.append(
            f"{stage['name']}: {kept['rows']:,} of {came['rows']:,} documents stay, {kept['bytes'] / 1e6:,.1f} MB"
        )
        most = sorted(stage["dropped"].items(), key=lambda item: -item[1]["rows"])
        lines += [f"  {count['rows']:,} dropped: {reason}" for reason, count in most[:REASONS]]
        if len(most) > REASONS:
            lines.append(f"  and {len(most) - REASONS} reasons more")
    if tokens := told["tokens"]:
        lines.append(f"tokens: {tokens['train']['tokens']:,} to train on, {tokens['validation']['tokens']:,} held out")
    return "\n".join([*lines, f"{told['seconds']:.1f} s; look at {out / PAGE}"])
