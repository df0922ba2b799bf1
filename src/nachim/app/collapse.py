"""The verb `nachim collapse`: a run, trained on what it wrote, again and again; where it collapses, and what helps."""

from __future__ import annotations

import json as jsonlib
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from nachim.app.train import run_of
from nachim.app.view import TerminalView
from nachim.spec import UserError

if TYPE_CHECKING:
    from nachim.lab.collapse import Collapse, Criterion

PAGE, SUMMARY = "collapse.html", "summary.json"
COLUMNS = {
    "bpb": ("bpb of human text", ".3f"),
    "distinct.2": ("distinct-2", ".3f"),
    "distinct.4": ("distinct-4", ".3f"),
    "tail.1": ("rare tokens", ".3f"),
    "tail.2": ("rare pairs", ".3f"),
    "unseen.2": ("pairs not human", ".3f"),
    "entropy.1": ("entropy", ".3f"),
    "law": ("own entropy", ".3f"),
}
"""What is shown of a generation: a path into its measures, a title, a format."""


def collapse(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")],
    shares: tuple[float, ...] = (0.0, 0.25),
    accumulate: bool = True,
    generations: int = 5,
    seeds: int = 2,
    text_bytes: int = 300_000,
    passage: int = 200,
    temperature: float = 1.0,
    top_p: float = 1.0,
    rise: float = 0.1,
    tail: float = 0.5,
    json: bool = False,
) -> int:
    """Train a model on its own output for several generations, and see whether, when and how it collapses.

    Generation 0 learns RUN's text. Every later one begins anew and is trained as RUN says on what the last one wrote,
    at each of several shares of human text, and (--accumulate) on all texts so far together. Each is measured on
    held-out human text, and what it writes by its diversity, entropy, and how much it keeps of the rare words of human
    text. The page shows each measure by generation. Safe to kill: the same command goes on.

    RUN is a run.json, the folder of a run, or a recipe (FILE.py, FILE.py:NAME). Of its corpus passages are drawn, so
    that whole documents fit the context. Give its Data mask_documents=True and packing="best-fit": documents are
    written without others before them.

    Example: nachim collapse recipes/stdlib.py --out runs/collapse --shares 0 0.1 0.5 --generations 4

    Args:
        source: How every generation is trained; its corpus is the human text.
        out: The folder of the study.
        shares: Shares of human text beside the last generation's; 1 is a control that reads human text alone.
        accumulate: Also keep the texts of all generations, human text counting as one of them.
        generations: How many after generation 0.
        seeds: How often all of it is done, with other weights, orders and draws.
        text_bytes: Human text, and about as much of each generation.
        passage: Characters of a passage at most.
        temperature: With which each generation writes.
        top_p: Each writes from the likeliest tokens that have this share together.
        rise: Collapsed is a generation whose bpb of human text is above that of generation 0 by more than this share,
        tail: or whose text has less than this share of generation 0's mass of rare tokens.
        json: Print one JSON object.
    """
    from nachim.lab.collapse import Arm, Collapse, Criterion

    arms = (Arm(keep="replace", human=share) for share in shares)
    spec = Collapse(
        run=run_of(source), arms=(*arms, *([Arm(keep="accumulate", human=None)] if accumulate else [])),
        generations=generations, seeds=seeds, text_bytes=text_bytes, passage=passage, temperature=temperature,
        top_p=top_p,
    )  # fmt: skip
    if not (rise > 0 and 0 < tail < 1):
        raise UserError(f"--rise {rise} --tail {tail}: give a rise above 0 and a tail between 0 and 1")
    found = open_collapse(spec, out, Criterion(rise, tail))
    print(jsonlib.dumps(found) if json else f"{told_of(found)}look at {out / PAGE}")
    return 0


def open_collapse(spec: Collapse, out: Path, criterion: Criterion | None = None) -> dict[str, Any]:
    """Carry out a study in `out`, or what is missing of it; its summary, also written there with its page."""
    import torch

    from nachim.app.collapse_page import write_page
    from nachim.lab.collapse import Criterion, Study, summary
    from nachim.lab.work import Place
    from nachim.spec.disk import write_text
    from nachim.train.loop import Watch

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = Place(cache=out / "cache", device=device, threads=threads)
    with TerminalView() as view:
        view.stage("the study's text")
        study = Study(spec, out, place, view.share, Watch(view.say, view.stopping))
        view.stage("generations")
        rows = []
        for row in study.rows():
            rows.append(row)
            name = f"{row.arm or 'human text'}, seed {row.seed}, generation {row.generation}"
            view.say(f"{name}: {row.measured.bpb:.3f} bpb, rare tokens {row.measured.tail['1']:.3f}")
    found = summary(rows, study.reference, criterion or Criterion())
    write_text(out / SUMMARY, jsonlib.dumps(found, indent=1) + "\n")
    write_page(out / PAGE, found)
    return found


def told_of(found: dict[str, Any]) -> str:
    """The tables of a study: means of the seeds, their range below, and a sentence for each arm."""
    console = Console(width=140, highlight=False)
    table = Table("arm", "generation", *(title for title, _ in COLUMNS.values()))
    for arm in found["arms"]:
        for number, measured in enumerate(arm["generations"]):
            cells = [cell([reach(one, path) for one in measured], form) for path, (_, form) in COLUMNS.items()]
            table.add_row(arm["arm"], str(number), *cells)
    with console.capture() as captured:
        console.print(table)
        for line in sentences(found):
            console.print(line, markup=False)
    return captured.get()


def sentences(found: dict[str, Any]) -> list[str]:
    """Where each arm collapses, with the spread over its seeds."""
    rule = found["criterion"]
    lines = [
        f"collapsed: bpb of human text more than {rule['rise']:.0%} above generation 0's of the same seed, or less "
        f"than {rule['tail']:.0%} of its mass of rare tokens, from there on"
    ]
    for arm in found["arms"]:
        told, last = arm["collapse"], len(arm["generations"]) - 1
        rises = [_rise(arm["generations"], place) for place in range(len(told))]
        spread = f" ({min(rises):+.1%} to {max(rises):+.1%} by seed)" if len(rises) > 1 else ", one seed"
        if all(one["generation"] is None for one in told):
            said = f"no collapse by generation {last}"
        else:
            each = ", ".join(f"at generation {at}" if (at := one["generation"]) else "not" for one in told)
            said = f"collapse {each}, seed by seed" if len(told) > 1 else f"collapse {each}"
            said += f", by {' and '.join(sorted({one['by'] for one in told if one['by']}))}"
        lines.append(f"{arm['arm']}: {said}; bpb of human text {mean(rises):+.1%} at generation {last}{spread}")
    return lines


def _rise(generations: Sequence[Sequence[dict[str, Any]]], seed: int) -> float:
    return float(generations[-1][seed]["bpb"] / generations[0][seed]["bpb"] - 1)


def reach(measured: dict[str, Any], path: str) -> float:
    """The number at a dotted path."""
    for name in path.split("."):
        measured = measured[name]
    return float(measured)  # type: ignore[arg-type]


def cell(values: Sequence[float], form: str) -> str:
    """The mean, and the range where there are several."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{mean(values):{form}} ({min(values):{form}}-{max(values):{form}})"
