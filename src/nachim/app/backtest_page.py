"""The page of a backtest: every law's error on every set, how errors grow with reach, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from nachim.app.backtest import HEADS, POOLED_HEADS, pooled_rows, reasons, rows_of, verdict
from nachim.app.figures import SHAPES, TEMPLATE, log_axis, round_ticks
from nachim.app.page import Html, bullets, document, element, figure, table
from nachim.law.backtest import CUTOFFS, HELD_OUT, DataSet, Trial
from nachim.spec.disk import write_text

CONFIG = {"displayModeBar": False, "responsive": True}
LEAST_SHOWN = 0.01
"""Errors below this, in percent, are drawn at it: the axis is logarithmic."""
SYMBOLS = ("diamond", "circle-open", "square-open", "triangle-up-open", "triangle-down-open", "cross-thin-open")
BY_SET = (
    "Mean absolute error of the forecasts of each set's dearest runs, from all of its cheaper runs. The choice among "
    "laws cannot know which law will be right; the rollouts on the cheaper runs tell it."
)
BY_REACH = (
    "The same held-out runs forecast from ever cheaper ones. A point is one set at one cut-off; how far the dearest "
    "held-out run lies beyond the dearest fitted one is what makes a forecast hard. Full points: at least three in "
    "four of the runs lay inside their 90 % intervals."
)


def write_page(path: Path, sets: Sequence[DataSet], trials: Sequence[Trial], summary: dict[str, Any]) -> None:
    """Write the page of a backtest to `path`, atomically."""
    first = summary["pooled"][0]["law"]
    notes = [f"{data.name}: {note}." for data in sets for note in data.notes]
    rule = (
        f"{first}: all cheaper runs fitted, the dearest held out by whole budgets ({HELD_OUT:.0%} of the runs or more)"
    )
    page = document(
        "nachim: backtest",
        get_plotlyjs(),
        element("header", element("h1", f"nachim backtest · {len(sets)} sets")),
        element("div", verdict(summary), kind="verdict"),
        bullets("Without a forecast", [*reasons(trials, first), *summary["skipped"]], "gaps"),
        figure("Error of every law on every set", _drawn(by_set(sets, trials)), BY_SET, ""),
        figure("Error against reach", _drawn(by_reach(trials, first)), BY_REACH, ""),
        element("h2", "Numbers"),
        element("p", rule, kind="note"),
        table(HEADS, rows_of(sets, trials, first), left=2),
        element(
            "p", "All sets together; a cut-off is the cheapest share of the other runs that was fitted.", kind="note"
        ),
        table(POOLED_HEADS, pooled_rows(summary)),
        bullets("What was left out", notes, "note"),
    )
    write_text(path, page)


def by_set(sets: Sequence[DataSet], trials: Sequence[Trial]) -> go.Figure:
    """Error of each law at the widest cut-off, one row a set, the sets with the least error of the first law on top."""
    made = [each for each in trials if each.cutoff == CUTOFFS[0] and not each.reason]
    first = trials[0].law
    error = {each.data: each.mape for each in made if each.law == first}
    order = sorted((data.name for data in sets), key=lambda name: -error.get(name, 0.0))
    fig = go.Figure(layout={"template": TEMPLATE, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}})
    names = list(dict.fromkeys(each.law for each in made))
    for place in sorted(range(len(names)), key=lambda place: -place):
        own = {each.data: each for each in made if each.law == names[place]}
        marker = {
            "color": SHAPES[place % len(SHAPES)],
            "size": 11 if place == 0 else 8,
            "symbol": SYMBOLS[place % len(SYMBOLS)],
        }
        fig.add_scatter(
            x=[max(own[name].mape, LEAST_SHOWN) if name in own else None for name in order], y=order, mode="markers",
            marker=marker, name=names[place], legendrank=place, hovertemplate="%{y}: %{x:.2f} %",
        )  # fmt: skip
    log_axis(fig.update_xaxes, _ticks([each.mape for each in made]), "mean absolute error, %")
    return fig.update_layout(height=160 + 26 * len(order)).update_yaxes(automargin=True, type="category")


def by_reach(trials: Sequence[Trial], law: str) -> go.Figure:
    """Error of `law` over reach, at every cut-off."""
    made = [each for each in trials if each.law == law and not each.reason]
    fig = go.Figure(layout={"template": TEMPLATE, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}})
    for colour, cutoff in zip(SHAPES, CUTOFFS, strict=False):
        own = [each for each in made if each.cutoff == cutoff]
        symbols = ["circle" if each.coverage90 >= 75 else "circle-open" for each in own]
        fig.add_scatter(
            x=[each.reach for each in own], y=[max(each.mape, LEAST_SHOWN) for each in own], mode="markers",
            marker={"color": colour, "size": 9, "symbol": symbols}, name=f"{cutoff:.0%} of the cheaper runs fitted",
            text=[each.data for each in own], hovertemplate="%{text}: %{y:.2f} % at %{x:.1f} times<extra></extra>",
        )  # fmt: skip
    title = "dearest held-out run / dearest fitted run, compute"
    log_axis(fig.update_xaxes, _ticks([each.reach for each in made]), title)
    log_axis(fig.update_yaxes, _ticks([each.mape for each in made]), "mean absolute error, %")
    return fig.update_layout(height=420)


def _drawn(fig: go.Figure) -> Html:
    return Html(fig.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))


def _ticks(values: Sequence[float]) -> list[float]:
    return round_ticks(max(min(values), LEAST_SHOWN), max(values))
