"""The verb `nachim compare`: a baseline's ladder and those of ideas in, what each idea is worth out."""

from __future__ import annotations

import json as jsonlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nachim.app.code import function_in, is_code
from nachim.lab.compare import open_ladder
from nachim.spec import UserError

if TYPE_CHECKING:
    from nachim.law.compare import Worth

SURE = 0.05
"""Below this q an idea is said to be worth something, or to cost something."""


def compare(
    base: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BASE")],
    ideas: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IDEA...")] = (),
    out: Annotated[Path | None, tyro.conf.arg(metavar="PAGE.html")] = None,
    json: bool = False,
) -> int:
    """Say what an idea is worth: how many times more compute the baseline needs to reach the idea's loss.

    BASE and each IDEA are ladders: a table of runs (CSV or parquet with `tokens`, `loss` and `params` or
    `flops_per_token`; better with `seed` and `group`), a folder made by `nachim ladder`, or a folder of finished runs.
    Runs of the same shape, tokens and seed are compared in pairs, which takes out the noise they share.

    An idea may also be a function that changes a run, FILE.py:NAME: the ladder of the folder BASE is then trained once
    more with it, into a folder of that name beside BASE, and the same command goes on where it was.

    The multiplier has a 95 % interval at each scale; its trend says whether the gain grows or vanishes with compute.
    With several ideas, q is the p-value with false discoveries controlled over all of them. Losses must be of the same
    text, in the same unit.

    Example: nachim compare runs/base runs/idea

    Example: nachim compare runs/base ideas/compare_previous_key.py:without_previous_key --out worth.html

    Args:
        base: The baseline's ladder.
        ideas: One ladder or more, or functions that change a run (FILE.py:NAME), each compared with the baseline.
        out: Write a page with the curve of multiplier against compute, one file that needs no network.
        json: Print one JSON object: that of the idea, or for several `{"ideas": [...]}`.
    """
    from nachim.law.compare import compare_all

    if not ideas:
        raise UserError(f"nothing to compare with {base}: name the ladder of at least one idea")
    folders = dict(zip(_names(ideas), (_trained(base, idea) if is_code(idea) else idea for idea in ideas), strict=True))
    found = compare_all(open_ladder(base), {name: open_ladder(folder) for name, folder in folders.items()})
    told = [{"baseline": str(base), "idea": str(folders[name]), **summarise(found[name])} for name in found]
    if out is not None:
        from nachim.app.compare_page import write_page

        write_page(out, base, found)
    if json:
        print(jsonlib.dumps(told[0] if len(told) == 1 else {"ideas": told}))
    else:
        _show(base, found, out)
    return 0


def summarise(worth: Worth) -> dict[str, Any]:
    """Everything `nachim compare` says of one idea, as plain JSON values; `noise` in percent of loss."""
    value, low, high = worth.at(worth.scales)
    scales = zip(worth.scales.tolist(), value.tolist(), low.tolist(), high.tolist(), strict=True)
    return {
        "multiplier": worth.multiplier,
        "low": worth.low,
        "high": worth.high,
        "p": worth.p,
        "q": worth.q,
        "at_flops": worth.at_flops,
        "trend": worth.trend,
        "trend_low": worth.trend_interval and worth.trend_interval[0],
        "trend_high": worth.trend_interval and worth.trend_interval[1],
        "trend_p": worth.trend_p,
        "trend_q": worth.trend_q,
        "scales": [dict(zip(("flops", "multiplier", "low", "high"), each, strict=True)) for each in scales],
        "pairs": worth.pairs,
        "unpaired": worth.unpaired,
        "chains": worth.chains,
        "law": worth.law,
        "noise": 100 * worth.noise,
        "notes": list(worth.notes),
    }


def verdict(name: str, worth: Worth) -> str:
    """What an idea is worth, in one sentence."""
    ends = f"between {worth.low:.3g} and {worth.high:.3g}"
    if worth.q >= SURE:
        told = f"{name}: no worth shown; the multiplier of compute lies {ends}"
    elif worth.multiplier > 1:
        told = f"{name} saves compute: the baseline needs {worth.multiplier:.3g} times as much ({ends}) for its loss"
    else:
        ends = f"between {1 / worth.high:.3g} and {1 / worth.low:.3g}"
        told = f"{name} costs compute: it needs {1 / worth.multiplier:.3g} times as much ({ends}) as the baseline"
    if worth.trend is None:
        return f"{told}; runs of one cost show no trend with scale."
    if worth.trend_q is None or worth.trend_q >= SURE:
        return f"{told}; no trend with scale is shown."
    far = abs(worth.at(worth.scales[-1:])[0][0] - 1) >= abs(worth.at(worth.scales[:1])[0][0] - 1)
    return f"{told}; the difference {'grows' if far else 'vanishes'} with scale."


def verdict_kind(worth: Worth) -> str:
    """How a verdict is marked: "good", "bad", or "wait" where nothing is shown."""
    return "wait" if worth.q >= SURE else "good" if worth.multiplier > 1 else "bad"


def _names(ideas: Sequence[Path]) -> list[str]:
    """The function's name or the last part of each path, or all of it where those are not distinct."""
    short = [short_name(idea) for idea in ideas]
    names = short if len(set(short)) == len(short) else [str(idea) for idea in ideas]
    if len(set(names)) < len(names):
        raise UserError("an idea is named twice: name each ladder once")
    return names


def short_name(idea: Path) -> str:
    """The function that FILE.py:NAME names, or the last part of a path."""
    if is_code(idea):
        return str(idea).partition(".py:")[2] or idea.stem
    return idea.stem if idea.is_file() else idea.resolve().name


def _trained(base: Path, source: Path) -> Path:
    """The folder of the baseline's ladder with the idea that `source` names, trained here where it is not yet."""
    import torch

    from nachim.app.ask import CACHE
    from nachim.app.view import TerminalView
    from nachim.lab.twin import Twin
    from nachim.lab.work import Place

    name, change = function_in(source, "idea")
    out = base.resolve().parent / f"{base.resolve().name}-{name}"
    on_gpu = torch.cuda.is_available()
    workers = 1 if on_gpu else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with TerminalView() as view:
        Twin(base, out, str(source), change).climb(Place(CACHE, "cuda" if on_gpu else "cpu"), workers, view)
    return out


def _show(base: Path, found: Mapping[str, Worth], out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"multiplier of compute over {base}, 95 % intervals", title_justify="left")
    table.add_column("idea", overflow="fold")
    for head in ("multiplier", "smallest C", "largest C"):
        table.add_column(head, justify="right")
    table.add_column("q" if len(found) > 1 else "p", justify="right")
    for name, worth in found.items():
        ends = [f"{m:.3f} ({a:.3f}–{b:.3f})" for m, a, b in zip(*worth.at(worth.scales[[0, -1]]), strict=True)]
        table.add_row(name, f"{worth.multiplier:.3f} ({worth.low:.3f}–{worth.high:.3f})", *ends, f"{worth.q:.2g}")
    console.print(table)
    for name, worth in found.items():
        console.print(verdict(name, worth), highlight=False, markup=False)
        console.print(_ground(worth), highlight=False, markup=False, style="dim")
        for note in worth.notes:
            console.print(f"beware: {note}", highlight=False, markup=False)
    if out is not None:
        console.print(f"page: {out}", highlight=False, markup=False)


def _ground(worth: Worth) -> str:
    """What a multiplier rests on."""
    low, high = worth.span
    trend = "" if worth.trend is None else f"log multiplier over log C {worth.trend:+.3f} (p {worth.trend_p:.2g}); "
    return (
        f"{trend}over {low:.3g} to {high:.3g} FLOP, known best at {worth.at_flops:.3g}; {counted(worth)}, noise "
        f"{100 * worth.noise:.2f} % of loss; {worth.law} law"
    )


def counted(worth: Worth) -> str:
    """How many pairs a multiplier rests on, and how many single runs and chains, where that says more."""
    parts = [f"{worth.pairs} pairs"] if worth.pairs else []
    parts += [f"{worth.unpaired} single runs"] if worth.unpaired else []
    chains = worth.chains < worth.pairs + worth.unpaired
    return " and ".join(parts) + (f" of {worth.chains} chains" if chains else "")
