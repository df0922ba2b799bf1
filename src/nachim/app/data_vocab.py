"""The verb `nachim data vocab`: what vocabularies of several sizes make of a text, cost, and come to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Group
from rich.table import Column, Table

from nachim.app.view import TerminalView

PAGE = "vocab.html"


@dataclass(frozen=True)
class Vocab:
    """Say how large a run's vocabulary should be: bytes a token, what embedding and head cost, bpb at equal compute.

    A tokenizer of every size is trained on RUN's corpus, and RUN's body with each by every seed. All have the compute
    of RUN, its head included, so a larger vocabulary trains on fewer tokens; all are judged on the same held-out text.
    Intervals are of 95 %, over the seeds; the bottom of a parabola through the sizes near the best has one of 90 %.
    With --seeds 0 nothing is trained. Safe to kill: the same command goes on, also to more seeds.

    Example: nachim data vocab recipes/stdlib.py --out runs/vocab --sizes 512 1024 2048 4096
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run.json, the folder of a run, or a recipe (FILE.py, FILE.py:NAME); its tokenizer is BPE or Unigram."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The study's folder: runs, observations.csv, summary.json, vocab.html."""
    sizes: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    """Sizes of the vocabulary, end-of-text token included."""
    seeds: int = 2
    """Runs of each size; 0 counts and trains nothing."""
    held_out_bytes: int = 500_000
    """How much text all runs are judged on."""
    json: bool = False
    """Print one JSON object: sizes (bytes_per_token, params_share, flops_share, tokens, bpb, ...), best, optimum."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], Group]:
        """Do it; what was found, for a script and for a person."""
        import torch

        from nachim.app.ask import CACHE
        from nachim.app.train import run_of
        from nachim.app.vocab_page import write_page
        from nachim.lab.vocabulary import VocabularyQuestion, VocabularyStudy
        from nachim.lab.work import Place

        sizes, held = tuple(sorted(self.sizes)), self.held_out_bytes
        question = VocabularyQuestion(base=run_of(self.source), sizes=sizes, seeds=self.seeds, held_out_bytes=held)
        on_gpu = torch.cuda.is_available()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        place = Place(CACHE, "cuda" if on_gpu else "cpu")
        found = VocabularyStudy(self.out, question, place, 1 if on_gpu else cores, view).run()
        write_page(self.out / PAGE, found)
        return found, Group(tabled(found), *sentences(found), f"page: {self.out / PAGE}")


COLUMNS = ("size", "bytes a token", "of the params", "of the FLOPs", "tokens", "MB read", "epochs")


def cells(one: dict[str, Any]) -> list[str]:
    """What is counted of one size, under `COLUMNS`."""
    return [
        f"{one['vocab_size']:,}",
        f"{one['bytes_per_token']:.3f}",
        f"{one['params_share']:.1%}",
        f"{one['flops_share']:.1%}",
        f"{one['tokens']:,}",
        f"{one['bytes'] / 1e6:.2f}",
        f"{one['epochs']:.2f}",
    ]


MEASURED = ("bpb", "by seed", "above the best")


def measured(one: dict[str, Any]) -> list[str]:
    """What was measured of one size, under `MEASURED`."""
    above = f"{one['over_best']:+.2%}" if one["over_best"] else "best"
    if one["over_best"] and one["low"] is not None:
        above += f" ({one['low']:+.2%} to {one['high']:+.2%})"
    return [f"{one['mean']:.4f}", " ".join(f"{bpb:.4f}" for bpb in one["bpb"]), above]


def tabled(found: dict[str, Any]) -> Table:
    """The study as a table."""
    heads = (*COLUMNS, *(MEASURED if "best" in found else ()))
    table = Table(*(Column(head, justify="right") for head in heads))
    for one in found["sizes"]:
        table.add_row(*cells(one), *(measured(one) if "best" in found else ()))
    return table


def sentences(found: dict[str, Any]) -> list[str]:
    """What the study says, for a person."""
    spent = f"{found['flops']:.3g} FLOP a run, the head included"
    if "best" not in found:
        return [f"{spent}; nothing was trained"]
    others = [f"{size:,}" for size in found["alike"] if size != found["best"]]
    said = f"the best of these is {found['best']:,}, at {spent}"
    if found["noise"] is None:
        said += "; one seed tells nothing of noise"
    elif others:
        said += f"; {found['seeds']} seeds cannot tell it from {', '.join(others)}"
    lines = [said]
    if found["optimum"] is None:
        lines.append("no bottom lies between the sizes near the best: try others beyond it, or more around it")
    else:
        bottom = (
            "a parabola has its bottom at {vocab_size:,.0f} ({low:,.0f} to {high:,.0f}, within the sizes near the best)"
        )
        lines.append(bottom.format(**found["optimum"]))
    return lines
