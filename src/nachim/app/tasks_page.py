"""The page of task forecasts: each task's curve, and the same runs under linear and non-linear scoring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from nachim.app.figures import BAND, FORECAST, LAW, MEASURED, SHAPES, TEMPLATE, round_ticks, spelt
from nachim.app.page import Html, document, element, figure, power, table
from nachim.law.scoring import ANSWER, chance_of_right, exact_match
from nachim.law.tasks import Task
from nachim.spec.disk import write_text

CONFIG = {"displayModeBar": False, "responsive": True}
LENGTHS = (1, 3, ANSWER)
"""Bytes or tokens of an answer that is scored by exact match."""
UNITS = {"bits": "byte", "nats": "token"}
CURVE = (
    "Accuracy against the task loss of the same runs. The line is the mean of the curves, by weight, the band 90 % of "
    "what one more run could measure at that loss; squares are forecasts with their 90 % intervals, stars results."
)
SCORING = (
    "The same runs of {task} and the same losses, scored in two ways. Left, the chance of one right {unit}, 2^-L or "
    "e^-L, which rises smoothly. Right, the chance that every {unit} of an answer is right (arXiv 2304.15004), as a "
    "share of the best run's: the longer the answer, the later and the more sudden its rise, though the models are the "
    "same. What leaps on the right alone is the metric's doing. The table has the size of the leap of each task: the "
    "range over the median step, about one less than the number of runs for an even rise."
)
LEAPS = ("task", "runs", "{unit}s right of 10 (linear)", "Brier score", "exact match of 10 (non-linear)")


def write_page(
    path: Path, source: Path, found: Mapping[str, Task], summary: dict[str, Any], unit: Literal["bits", "nats"]
) -> None:
    """Write the page of all tasks to `path`, atomically; `summary` is what `nachim tasks --json` says."""
    told = summary["tasks"]
    parts: list[object] = []
    caption = CURVE
    for name, task in found.items():
        drawn = _markup(curve(task, told[name]["forecasts"])) if task.choice is not None else None
        reason = f"No forecast: {task.reason}."
        parts.append(figure(name, drawn, reason if task.reason else caption, reason))
        caption = caption if task.reason else ""
    widest = max(found.values(), key=lambda one: float(np.ptp(np.log(one.scores.loss))))
    said = SCORING.format(task=widest.name, unit=UNITS[unit])
    rows = [row for name in found for row in _rows(name, told[name])]
    page = document(
        f"nachim: tasks of {source.name}",
        get_plotlyjs(),
        element("header", element("h1", f"nachim tasks · {source.name}")),
        element("div", _verdict(found, summary["holdout"]), kind="verdict"),
        *parts,
        figure("The metric's doing", _markup(scoring(widest, unit)), said, ""),
        table([head.format(unit=UNITS[unit]) for head in LEAPS], [_leaps(name, told[name]) for name in found]),
        element("h2", "Forecasts"),
        table(("task", "C, FLOP", "task loss", "accuracy, %", "90 % interval", "came out"), rows),
    )
    write_text(path, page)


def curve(task: Task, forecasts: list[dict[str, Any]]) -> go.Figure:
    """Accuracy over task loss: runs, the mean curve with its band, forecasts and outcomes."""
    assert task.choice is not None
    fig = go.Figure(layout={"template": TEMPLATE, "height": 380})
    ends = [task.scores.loss.min(), task.scores.loss.max(), *(row["loss"] for row in forecasts)]
    losses = np.linspace(min(ends) * 0.98, max(ends) * 1.01, 40)
    rng = np.random.default_rng(0)
    drawn = [np.quantile(task.choice.draws(np.full(600, loss), rng), [0.05, 0.95]) for loss in losses]
    low, high = np.array(drawn).T
    fig.add_scatter(
        x=np.concatenate([losses, losses[::-1]]), y=100 * np.concatenate([high, low[::-1]]), fill="toself",
        fillcolor=BAND, mode="lines", line={"width": 0}, name="90 % of one run", hoverinfo="skip",
    )  # fmt: skip
    mean = 100 * task.choice.value(losses)
    fig.add_scatter(x=losses, y=mean, mode="lines", line={"color": LAW}, name="mean of the curves", hoverinfo="skip")
    marker = {"color": SHAPES[0], "size": 8}
    fig.add_scatter(x=task.scores.loss, y=100 * task.scores.accuracy, mode="markers", marker=marker, name="runs")
    for row in forecasts:
        first = row is forecasts[0]
        at = 100 * np.array([row["accuracy"], row["high"] - row["accuracy"], row["accuracy"] - row["low"]])
        reach = {"type": "data", "array": [at[1]], "arrayminus": [at[2]], "thickness": 2}
        square = {"color": FORECAST, "size": 10, "symbol": "square"}
        common = {"mode": "markers", "showlegend": first, "x": [row["loss"]]}
        fig.add_scatter(y=[at[0]], error_y=reach, marker=square, name="forecast", legendgroup="f", **common)
        if row["actual"] is not None:
            star = {"color": MEASURED, "size": 13, "symbol": "star"}
            fig.add_scatter(y=[100 * row["actual"]], marker=star, name="came out", legendgroup="a", **common)
    fig.update_xaxes(title="task loss (falls to the right)", autorange="reversed")
    return fig.update_yaxes(title="accuracy, %")


def scoring(task: Task, unit: Literal["bits", "nats"]) -> go.Figure:
    """All runs of a task over compute: one right byte or token, and whole answers right."""
    flops, right = task.runs.flops, chance_of_right(task.scores.loss, bits=unit == "bits")
    titles = [f"chance of one right {UNITS[unit]}", "exact match of a whole answer, of the best run's"]
    fig = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    fig.update_layout(template=TEMPLATE, height=360, legend={"orientation": "h", "y": -0.25})
    marker = {"color": SHAPES[0], "size": 7}
    fig.add_scatter(x=flops, y=right, mode="markers", marker=marker, showlegend=False, row=1, col=1)
    for place, k in enumerate(LENGTHS):
        dots = {"color": SHAPES[place], "size": 7}
        name = f"{k} {UNITS[unit]}{'s' * (k > 1)}"
        share = exact_match(right / right.max(), k)
        fig.add_scatter(x=flops, y=share, mode="markers", marker=dots, name=name, row=1, col=2)
    ticks = round_ticks(float(flops.min()), float(flops.max()))
    return fig.update_xaxes(
        type="log", title="training compute, FLOP", tickvals=ticks, ticktext=[spelt(each) for each in ticks]
    )


def _verdict(found: Mapping[str, Task], held: dict[str, float] | None) -> str:
    ready = sum(task.reason is None for task in found.values())
    said = f"{ready} of {len(found)} tasks can be forecast from these runs."
    if held is None:
        return said
    return (
        f"{said} {held['n']} forecasts held out are off by {held['mean_points']:.1f} points on average, "
        f"{held['coverage90']:.0f} % inside their 90 % interval."
    )


def _leaps(name: str, told: dict[str, Any]) -> list[object]:
    leap = told["leap"]
    cells = ["" if leap[kind] is None else f"{leap[kind]:.0f}" for kind in ("linear", "brier", "exact")]
    return [name, told["runs"], *cells]


def _rows(name: str, told: dict[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for row in told["forecasts"]:
        actual = "" if row["actual"] is None else f"{100 * row['actual']:.1f}"
        ends = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        point = f"{100 * row['accuracy']:.1f}" if row["accepted"] else "none"
        rows.append([name, power(row["flops"]), f"{row['loss']:.3f}", point, ends, actual])
    return rows


def _markup(fig: go.Figure) -> Html:
    return Html(fig.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))
