"""The page of a decision about data: multiplier against compute, what was sealed for the larger rung, and what came."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from nachim.app.compare import counted, verdict, verdict_kind
from nachim.app.compare_page import CONFIG, multipliers
from nachim.app.data_worth import checked, spanned
from nachim.app.figures import SHAPES
from nachim.app.page import Html, bullets, document, element, figure, power, table
from nachim.law.compare import Worth
from nachim.spec.disk import write_text

CAPTION = (
    "How many times more compute the baseline's data need to reach the loss of the other's. The line is the fit over "
    "both ladders, the band its 95 % interval, a point one pair of runs. The bar to the right is what was sealed for "
    "the larger rung before it was trained (95 %), the star what its pairs came to."
)


def write_page(path: Path, told: Mapping[str, Any], found: Mapping[str, Worth]) -> None:
    """Write the page to `path`, atomically."""
    base, rung = told["baseline"], told["rung"]
    drawn = Html(checked_figure(told, found).to_html(full_html=False, include_plotlyjs=False, config=CONFIG))
    notes = [f"{name}: {note}." for name, worth in found.items() for note in worth.notes]
    lines = [
        element("div", f"{verdict(idea['name'], found[idea['name']])} At {power(rung['flops'])} FLOP {checked(idea)}.",
                kind=f"verdict {verdict_kind(found[idea['name']])}")
        for idea in told["ideas"]
    ]  # fmt: skip
    page = document(
        f"nachim: data beside {base}",
        get_plotlyjs(),
        element("header", element("h1", f"nachim data worth · beside {base}")),
        *lines,
        bullets("What to beware of", notes, "gaps"),
        figure("Multiplier of compute", drawn, CAPTION, ""),
        element("h2", "Numbers"),
        *_numbers(told, found),
        element("p", f"Sealed {rung['sealed_at']}, SHA-256 {rung['sha256']}."),
        *_documents(told),
    )
    write_text(path, page)


def checked_figure(told: Mapping[str, Any], found: Mapping[str, Worth]) -> go.Figure:
    """The comparison's figure with what was sealed and measured at the larger rung."""
    fig = multipliers(found, [told["rung"]["flops"]], _seen(told))
    for place, idea in enumerate(told["ideas"]):
        colour, name = SHAPES[place % len(SHAPES)], html.escape(idea["name"])
        middle, low, high = idea["sealed"]["multiplier"]
        apart = told["rung"]["flops"] * 1.04 ** (place - (len(told["ideas"]) - 1) / 2)
        fig.add_scatter(
            x=[apart], y=[middle], mode="markers", marker={"color": colour, "symbol": "line-ew-open", "size": 12},
            error_y={"type": "data", "symmetric": False, "array": [high - middle], "arrayminus": [middle - low]},
            name=f"{name}, sealed", legendgroup=name, hovertemplate="sealed %{y:.3f}<extra></extra>",
        )  # fmt: skip
        fig.add_scatter(
            x=[apart], y=[idea["measured"]["multiplier"]], mode="markers", name=f"{name}, measured", legendgroup=name,
            marker={"color": colour, "symbol": "star", "size": 13, "line": {"color": "white", "width": 1}},
            hovertemplate="measured %{y:.3f}<extra></extra>",
        )  # fmt: skip
    return fig


def _seen(told: Mapping[str, Any]) -> list[float]:
    """Multipliers that the figure must have room for."""
    return [one for idea in told["ideas"] for one in (*idea["sealed"]["multiplier"], idea["measured"]["multiplier"])]


def _numbers(told: Mapping[str, Any], found: Mapping[str, Worth]) -> list[Html]:
    rung, rows, scales = told["rung"], [], []
    for idea in told["ideas"]:
        name, worth = idea["name"], found[idea["name"]]
        both = [
            spanned(*each)
            for each in (
                (idea["multiplier"], idea["low"], idea["high"]),
                idea["sealed"]["multiplier"],
                (idea["together"]["multiplier"], idea["together"]["low"], idea["together"]["high"]),
            )
        ]
        measured = f"{idea['measured']['multiplier']:.3f}"
        rows.append([name, both[0], f"{idea['p']:.2g}", both[1], measured, both[2], counted(worth)])
        scales += [
            [name, power(at["flops"]), spanned(at["multiplier"], at["low"], at["high"])] for at in idea["scales"]
        ]
    at = power(rung["flops"])
    losses = [[name, *(f"{loss:.4f}" for loss in each)] for name, each in rung["losses"].items()]
    return [
        table(("data", "by the ladders", "p", f"sealed for {at}", "measured", "by all runs", "rests on"), rows),
        table(("data", "C, FLOP", "multiplier, 95 %"), scales),
        element("h2", f"The larger rung: bits a byte of held-out text, {rung['tokens']:,} tokens"),
        table(("data", *(f"pair {n + 1}" for n in range(rung["pairs"]))), losses),
    ]


def _documents(told: Mapping[str, Any]) -> list[Html]:
    rows = []
    for name, stages in told["documents"].items():
        for one in stages:
            reasons = ", ".join(f"{count['rows']:,} {reason}" for reason, count in one["dropped"].items())
            kept = one["kept"]
            rows.append([name, one["stage"], reasons, f"{kept['rows']:,}", f"{kept['bytes'] / 1e6:,.2f}"])
    if not rows:
        return []
    return [
        element("h2", "What became of the documents"),
        table(("data", "stage", "dropped", "stay", "MB"), rows, left=3),
    ]
