"""The verb `nachim transfer`: sweeps of learning rate and batch in, laws for both with their regret out."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from nachim.law import concat
from nachim.law.hyper import SCALES, Hyper, Law, hyper
from nachim.law.observe import Observations, read_finished
from nachim.law.regret import Regret, comparison, leave_largest_out, leave_one_out
from nachim.law.sweep import SPELT, sweep_of
from nachim.law.transfer import PUBLISHED
from nachim.spec.error import UserError

if TYPE_CHECKING:
    from rich.table import Table

SOURCES = {name: planes.source for name, planes in PUBLISHED.items()} | {
    "refitted": "one bowl through all runs, nachim.law.hyper",
    "steplaw-recipe": "arXiv 2503.04715, refitted: log-linear on runs within 0.25 % of each best",
    "power-lines": "arXiv 2505.13738: batch ∝ D^0.383, its level and the learning rate refitted",
}
DEFINITION = (
    "100·(loss of the run nearest to the advice in log lr and log batch / best loss of its (scale, tokens) - 1)"
)
FAR = 4.0
"""A forecast more than this many times beyond the sweeps, in scale or in tokens, is called one."""


def transfer(
    obs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    at: tuple[float, float] | None = None,
    within: float = 0.25,
    scale: Literal["params", "flops_per_token"] | None = None,
    seed: int = 0,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Laws for learning rate and batch against model scale and tokens, refitted from sweeps, and what they cost.

    OBS is one or more CSV or parquet tables, one row a run, with the columns `params` (or `flops_per_token`), `tokens`,
    `lr`, `batch_tokens` (tokens, not sequences) and `loss`; `weight_decay` and `warmup` (in tokens) are fitted too
    where they vary. A study's folder stands for the runs of its sweep. At two or more (scale, tokens) the learning
    rate must take three or more values; three scales and three token counts determine a law.

    All runs shape one bowl whose bottom moves by power laws; the published laws are priors for its powers. Regret is
    what following a law costs on the runs themselves: the loss of the run nearest to its advice, over the best one.

    Example: nachim transfer sweep.csv --at 1e9 1e11 --out transfer.html

    Args:
        obs: Tables of finished runs, or studies' folders.
        at: Scale and tokens at which ranges of learning rate and batch are given; by default the dearest sweep's.
        within: Percent of loss that those ranges may cost.
        scale: What model scale is; by default params (N) where that column is present, else flops_per_token (M).
        seed: Seed of the bootstrap.
        out: Also write a page with the picture of regret over learning rate and batch to this file.
        json: Print one JSON object instead of tables.
    """
    from rich.console import Console

    if not obs:
        raise UserError("no table of runs was given: nachim transfer SWEEP.csv")
    if not (within > 0 and np.isfinite(within)):
        raise UserError(f"--within is {within:g}; it is a percentage of loss above 0")
    if at is not None and not all(np.isfinite(each) and each > 0 for each in at):
        raise UserError("--at takes a positive model scale and a positive number of tokens")
    tables = [swept(path) if path.is_dir() else read_finished(path) for path in obs]
    sweep = sweep_of(concat([table for table, _ in tables]), scale, unfinished=sum(lost for _, lost in tables))
    with Console(stderr=True).status(f"fitting {len(sweep.loss)} runs of {len(sweep.cells)} sweeps"):
        fitted = hyper(sweep, seed=seed)
        summary = summarise(fitted, at or _dearest(fitted), within)
    if out:
        from nachim.app.transfer_page import write_page

        write_page(out, fitted, summary)
    if json:
        print(jsonlib.dumps(summary))
    else:
        _show(summary)
        if out:
            print(out)
    return 0


def swept(study: Path) -> tuple[Observations, int]:
    """The finished runs of the sweep in a study's folder, and how many diverged. Raises UserError when it has none."""
    folders = sorted(each.parent for each in (study / "sweep").glob("*/result.json"))
    if not folders:
        raise UserError(f"{study} holds no finished run of a sweep: give a study's folder, or a table of runs")
    from nachim.lab.store import table_of
    from nachim.lab.work import result_of
    from nachim.spec import Run

    lost = len(list((study / "sweep").glob("*/diverged.json")))
    return table_of([(Run.load(folder / "run.json"), result_of(folder)) for folder in folders]), lost


def _dearest(fitted: Hyper) -> tuple[float, float]:
    sweep = fitted.sweep
    cells = sweep.cells[sweep.swept("lr")]
    x, tokens = cells[np.argmax(cells[:, 0] * cells[:, 1])]
    return float(x), float(tokens)


def summarise(fitted: Hyper, at: tuple[float, float], within: float) -> dict[str, Any]:
    """Everything `nachim transfer` reports, as plain JSON values; regret, noise and `within` in percent."""
    sweep, laws, tau = fitted.sweep, fitted.laws, fitted.timescale
    compared = comparison(fitted)
    once, largest = leave_one_out(fitted), leave_largest_out(fitted)
    if tau:
        laws = {**laws, "tau": tau}
    return {
        "scale": sweep.scale,
        "runs": len(sweep.loss),
        "sweeps": int(sweep.swept("lr").sum()),
        "left_out": dict(sweep.left_out),
        "noise": 100 * fitted.noise,
        "stretch": None if fitted.stretch is None else dict(zip(sweep.axes, fitted.stretch.tolist(), strict=True)),
        "laws": {name: _law(law, sweep.scale) for name, law in laws.items()},
        "regret": {
            **_regret(compared["refitted"]),
            "definition": DEFINITION,
            "leave_one_out": once and {name: _regret(one) for name, one in once.items()},
            "leave_largest_out": largest and {name: _regret(one) for name, one in largest.items()},
            "compared": {name: {**_regret(one), "source": SOURCES[name]} for name, one in compared.items()},
            "sweeps": _cells(fitted, compared["refitted"], once),
        },
        "at": _at(fitted, at, within),
        "warnings": _warnings(fitted, laws, at),
    }


def _law(law: Law, scale: str) -> dict[str, Any]:
    plane = law.plane
    x = "N" if scale == "params" else "M"
    return {
        "formula": f"{plane.coefficient:.4g}·{x}^{plane.model:.3f}·D^{plane.data:.3f}",
        "coefficient": plane.coefficient,
        "model": plane.model,
        "data": plane.data,
        "interval90": {name: list(ends) for name, ends in law.interval90.items()},
        "determined": dict(law.determined),
        "at_edge": law.edges,
        "sweeps": law.cells,
        "trusted": law.trusted,
    }


def _regret(one: Regret) -> dict[str, Any]:
    inside = one.interpolated[np.isfinite(one.interpolated)]
    return {
        "mean": one.mean,
        "worst": one.worst,
        "interpolated_mean": float(inside.mean()) if len(inside) else None,
        "sweeps": len(one.nearest),
        "outside": one.outside,
    }


def _cells(fitted: Hyper, ours: Regret, once: Mapping[str, Regret] | None) -> list[dict[str, Any]]:
    sweep = fitted.sweep
    rows = []
    for place, number in enumerate(np.flatnonzero(sweep.swept("lr"))):
        here = sweep.cell == number
        best = sweep.z[here][np.argmin(sweep.loss[here])]
        advised = fitted.log_best(*sweep.cells[number])[0]
        rows.append(
            {
                sweep.scale: float(sweep.cells[number, 0]),
                "tokens": float(sweep.cells[number, 1]),
                "runs": int(here.sum()),
                "best": {"loss": float(sweep.loss[here].min()), **_named(sweep.axes, best)},
                "advised": _named(sweep.axes, advised),
                "regret": float(ours.nearest[place]),
                "regret_left_out": None if once is None else float(once["refitted"].nearest[place]),
            }
        )
    return rows


def _named(axes: tuple[str, ...], logs: np.ndarray[Any, Any]) -> dict[str, float]:
    return {name: float(np.exp(value)) for name, value in zip(axes, logs, strict=True)}


def _at(fitted: Hyper, at: tuple[float, float], within: float) -> dict[str, Any]:
    mean, worst = fitted.cost_of_following(*at)
    ends = fitted.sweep.cells[fitted.sweep.swept("lr")]
    beyond = np.maximum(np.array(at) / ends.max(axis=0), ends.min(axis=0) / np.array(at)).clip(min=1)
    return {
        fitted.sweep.scale: at[0],
        "tokens": at[1],
        "within": within,
        "beyond": float(beyond.max()),
        "cost_of_following": {"mean": mean, "high": worst},
        "bands": {
            name: {
                "best": band.best,
                "interval90": list(band.interval90),
                "low": band.low if band.low > 0 else None,
                "high": band.high if np.isfinite(band.high) else None,
            }
            for name, band in fitted.bands(*at, within).items()
        },
    }


def _warnings(fitted: Hyper, laws: Mapping[str, Law], at: tuple[float, float]) -> list[str]:
    sweep, found = fitted.sweep, []
    for law in laws.values():
        if law.edges and law.name != "tau":
            trust = "" if law.trusted else ": do not trust this law, sweep further out"
            found.append(
                f"{SPELT[law.name]}: in {law.edges} of {law.cells} sweeps the best value is at the edge{trust}"
            )
        loose = [
            what
            for what, key in ((sweep.scale, "model"), ("tokens", "data"))
            if law.name != "tau" and not law.determined[key]
        ]
        if loose:
            found.append(
                f"{SPELT[law.name]}: the power of {' and of '.join(loose)} is mostly the prior's, not these runs'"
            )
    if "batch_tokens" not in sweep.axes:
        found.append(
            "the batch does not vary at any one (scale, tokens): there is no batch law, and the rate is for these"
        )
    if fitted.stretch is None:
        found.append(
            f"fewer than {SCALES} scales were swept: no interval could be tested on one left out; they may be narrow"
        )
    for reason, count in sweep.left_out.items():
        if count:
            what = {"diverged": "diverged", "not positive": "have a value that is not positive"}[reason]
            found.append(f"{count} runs {what}: left out")
    if (beyond := _at(fitted, at, 1.0)["beyond"]) > FAR:
        found.append(f"the ranges are for a run {beyond:.3g} times beyond the sweeps: power laws bend, sweep nearer")
    return found


def _show(summary: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_laws_table(summary))
    console.print(_bands_table(summary))
    console.print(_regret_table(summary))
    for line in _lines(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _laws_table(summary: dict[str, Any]) -> Table:
    x = "N" if summary["scale"] == "params" else "M"
    heads = ("law", f"power of {x}, 90 %", "power of D, 90 %")
    table = _table(f"optimum against {x} ({summary['scale']}) and D (tokens)", "", heads)
    for name, law in summary["laws"].items():
        ends = [
            "{:.2f} to {:.2f}".format(*law["interval90"][key]) + ("" if law["determined"][key] else " *")
            for key in ("model", "data")
        ]
        table.add_row(SPELT.get(name, "tau"), law["formula"], *ends)
    return table


def _bands_table(summary: dict[str, Any]) -> Table:
    at = summary["at"]
    title = f"at {summary['scale']} {at[summary['scale']]:.4g} and tokens {at['tokens']:.4g}"
    table = _table(title, "", ("best", "90 % interval", f"costs ≤ {at['within']:g} %"))
    for name, band in at["bands"].items():
        ends = [spelt(band[end]) if band[end] is not None else "any" for end in ("low", "high")]
        sure = " to ".join(spelt(end) for end in band["interval90"])
        table.add_row(SPELT[name], spelt(band["best"]), sure, " to ".join(ends))
    return table


def _regret_table(summary: dict[str, Any]) -> Table:
    table = _table("regret on the runs' own grid, %", "", ("mean", "worst", "interpolated", "sweeps"))
    regret = summary["regret"]
    rows = [(name, one) for name, one in regret["compared"].items()]
    for key, said in (("leave_one_out", "left out, one at a time"), ("leave_largest_out", "largest scale left out")):
        rows += [(f"{name}, {said}", one) for name, one in (regret[key] or {}).items()]
    for name, one in rows:
        between = one["interpolated_mean"]
        said = "-" if between is None else f"{between:.3f}"
        table.add_row(name, f"{one['mean']:.3f}", f"{one['worst']:.3f}", said, str(one["sweeps"]))
    return table


def _table(title: str, first: str, heads: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _lines(summary: dict[str, Any]) -> list[str]:
    following = summary["at"]["cost_of_following"]
    lines = [
        f"{summary['runs']} runs in {summary['sweeps']} sweeps; scatter about the bowl near its bottom "
        f"{summary['noise']:.3f} % of loss",
        f"at {summary['scale']} {summary['at'][summary['scale']]:.4g} the law's own uncertainty costs "
        f"{following['mean']:.3f} % on average, {following['high']:.3f} % at the 95th percentile",
    ]
    if any(not each for law in summary["laws"].values() for each in law["determined"].values()):
        lines.append("* mostly the prior's: the published laws, as far apart as they are")
    return lines + [f"warning: {text}" for text in summary["warnings"]]


def spelt(value: float) -> str:
    """A rate with three digits, a token count with a separator."""
    return f"{value:,.0f}" if value >= 1e3 else f"{value:.3g}"
