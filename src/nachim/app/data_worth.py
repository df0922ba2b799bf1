"""The verb `nachim data worth`: data sets that differ in one decision in, what the decision is worth out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Group, RenderableType
from rich.table import Table

from nachim.app.ask import CACHE
from nachim.app.code import function_in, is_code
from nachim.app.compare import counted, short_name, summarise, verdict
from nachim.app.view import TerminalView
from nachim.spec import Corpus, Files, Mixture, UserError
from nachim.spec.disk import read_json

if TYPE_CHECKING:
    from nachim.lab.data_sides import Source
    from nachim.lab.data_worth import WorthStudy
    from nachim.law.compare import Worth

PAGE = "worth.html"


@dataclass(frozen=True)
class DataWorth:
    """Say what a decision about data is worth: how many times more compute the first data set needs to reach the loss
    of each other one, by paired ladders of small runs, and by a larger rung that is forecast before it is trained.

    A data set is a recipe (FILE.py or FILE.py:NAME, a function that returns a Pipeline, a corpus or a Mixture) or a
    path to text. Of pipelines and texts the same documents are held out of every one, by content, and nothing near to
    them is read by any run: their bits a byte are the loss. Mixtures must be of the same corpora, and are judged on the
    held-out text of each, all alike. Runs are paired: same shapes, tokens, seeds, tokenizer and held-out text.

    Stop it whenever you like: the same command goes on. DIR/forecast.json is sealed before the larger rung begins, and
    DIR/worth.html is the page to look at.

    Example: nachim data worth raw.jsonl clean.jsonl --minutes 30 --out runs/worth

    Example: nachim data worth mine.py:raw mine.py:deduplicated mine.py:filtered --out runs/worth
    """

    sets: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="BASE OTHER...")]
    """The baseline's data, and one data set or more that are compared with it."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The study's folder: data sets, ladder, tables, forecast.json, verdict.json, worth.html."""
    minutes: float = 30.0
    """How long all training may take here; making and tokenizing the data comes on top."""
    flops: float | None = None
    """The ladders' largest budget, in place of one that fits the minutes: the same plan on any machine."""
    seeds: int = 2
    """Seeds of every run of the ladders."""
    pairs: int | None = None
    """Pairs of the larger rung: as many as seeds, or so many."""
    times: float = 4.0
    """Compute of the larger rung over the ladders' largest budget."""
    held_out: float = 0.1
    """Share of the documents that is held out of all data sets."""
    vocab_size: int = 512
    """Size of the byte-level BPE vocabulary, trained on held-out text that judges nothing."""
    seq_len: int = 128
    """Tokens of context."""
    seed: int = 0
    """The first seed."""
    workers: int = 0
    """Runs at a time; 0 is one for every core."""
    json: bool = False
    """Print one JSON object."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], RenderableType]:
        """Do it; what was found, for a script and for a person."""
        from nachim.app.data_worth_page import write_page

        study = self._study(view)
        found, judged = study.run()
        told = told_of(study.root, next(iter(study.question.sources)), found, judged)
        write_page(study.root / PAGE, told, found)
        return told, Group(*show(told, found), f"page: {study.root / PAGE}")

    def _study(self, view: TerminalView) -> WorthStudy:
        sources = sources_of(self.sets)  # what is wrong with them need not wait for torch
        import torch

        from nachim.lab.data_worth import Question, WorthStudy
        from nachim.lab.work import Place

        question = Question(
            sources=sources, minutes=self.minutes, seeds=self.seeds, times=self.times,
            share=self.held_out, vocab_size=self.vocab_size, seq_len=self.seq_len, seed=self.seed,
            flops=self.flops, pairs=self.pairs,
        )  # fmt: skip
        on_gpu = torch.cuda.is_available()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = self.workers or (1 if on_gpu else cores)
        return WorthStudy(self.out, question, Place(CACHE, "cuda" if on_gpu else "cpu"), workers, view)


def sources_of(paths: Sequence[Path]) -> dict[str, Source]:
    """The data set behind each argument, by its name. Raises UserError for names that are not distinct, no file, or a
    function that returns something else."""
    from nachim.data.pipeline import Pipeline

    found: dict[str, Source] = {}
    for path in paths:
        name = short_name(path)
        if name in found:
            raise UserError(f"two data sets are called {name}: rename a file or a function")
        if is_code(path):
            _, recipe = function_in(path, "pipeline")
            source = recipe()
            if not isinstance(source, Pipeline | Corpus | Mixture):
                kind = type(source).__name__
                raise UserError(f"{path} returned a {kind}: a data set is a Pipeline, a corpus or a Mixture")
            found[name] = source
        elif path.exists():
            found[name] = Files(path=str(path.resolve()))
        else:
            raise UserError(f"no such file or folder: {path}; a data set is text, or a recipe FILE.py:NAME")
    return found


def told_of(root: Path, base: str, found: Mapping[str, Worth], judged: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is known at the end, as plain JSON values."""
    sealed = read_json(root / "forecast.json")
    rung = {key: sealed[key] for key in ("flops", "flops_per_token", "tokens", "pairs", "sealed_at", "sha256")}
    return {
        "baseline": base,
        "ideas": [{"name": name, **summarise(worth), **judged["ideas"][name]} for name, worth in found.items()],
        "rung": rung | {"losses": judged["losses"], "epochs": judged["epochs"]},
        "documents": read_json(root / "documents.json"),
    }


def show(told: Mapping[str, Any], found: Mapping[str, Worth]) -> list[RenderableType]:
    """What a person reads at the end: the ladders, what was forecast from them, what was measured."""
    base, rung = told["baseline"], told["rung"]
    table = Table(title=f"multiplier of compute over {base}, 95 % intervals", title_justify="left")
    table.add_column("data", overflow="fold")
    for head in ("by the ladders", f"sealed for {rung['flops']:.2g} FLOP", "measured", "by all runs there"):
        table.add_column(head, justify="right")
    for idea in told["ideas"]:
        middle, low, high = idea["sealed"]["multiplier"]
        table.add_row(idea["name"], *(spanned(*each) for each in (_ends(idea), (middle, low, high))),
                      f"{idea['measured']['multiplier']:.3f}", spanned(*_ends(idea["together"])))  # fmt: skip
    lines: list[RenderableType] = [table]
    for idea in told["ideas"]:
        worth = found[idea["name"]]
        rests = f"  {counted(worth)}, noise {idea['noise']:.2f} % of loss; {checked(idea)}"
        lines += [verdict(idea["name"], worth), rests]
        lines += [f"  beware: {note}" for note in worth.notes]
    return lines + [came_of(name, stages, rung["epochs"][name]) for name, stages in told["documents"].items()]


def checked(idea: Mapping[str, Any]) -> str:
    """The forecast of the larger rung beside what it measured, in loss, in one clause."""
    _, low, high = (100 * (one - 1) for one in idea["sealed"]["ratio"])
    measured = 100 * (idea["measured"]["ratio"] - 1)
    inside = "inside" if idea["inside"] else "outside"
    return f"the larger rung's loss differs by {measured:+.2f} %, {inside} the sealed {low:+.2f} to {high:+.2f} %"


def came_of(name: str, stages: Sequence[Mapping[str, Any]], epochs: Mapping[str, float]) -> str:
    """What was left of a data set's documents, and how often the larger rung read them."""
    first, last = stages[0]["came"], stages[-1]["kept"]
    times = ", ".join(f"{each:.2f}" for each in epochs.values())
    return (
        f"{name}: {last['rows']:,} of {first['rows']:,} documents, {last['bytes'] / 1e6:,.1f} MB, read {times} times "
        "over by the larger rung"
    )


def spanned(value: float, low: float, high: float) -> str:
    """A multiplier with its interval."""
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


def _ends(one: Mapping[str, Any]) -> tuple[float, float, float]:
    return one["multiplier"], one["low"], one["high"]
