"""The figures of a run's page: its course over tokens, and what was sampled inside the model."""

from __future__ import annotations

import html

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nachim.app.figures import GRID, LAW, MEASURED, SHAPES, TEMPLATE, log_axis, round_ticks
from nachim.app.run_record import Heat, RunRecord
from nachim.law.forms import Array

POINTS = 1500
"""Points of a curve, and columns of a map below; more cannot be told apart."""
COLUMNS = 240
HEAT = [[0, "#20396b"], [0.5, "#6f9fd0"], [1, "#f6e3b4"]]
LOADS = [[0, "#20396b"], [0.5, "#eef2f6"], [1, "#b9452f"]]
ROW_PIXELS, LEAST_PIXELS, MOST_PIXELS = 17, 240, 1500


def loss(record: RunRecord) -> go.Figure:
    """Loss over tokens: of single steps, their running mean, and validation."""
    tokens, values = record.column("tokens"), record.column("loss")
    fig = _panels(1)
    x, y = thinned(tokens, values)
    fig.add_scatter(x=x, y=y, mode="lines", line={"color": SHAPES[0], "width": 1}, opacity=0.3, name="step")
    x, y = thinned(tokens, running_mean(values))
    fig.add_scatter(x=x, y=y, mode="lines", line={"color": SHAPES[0], "width": 2}, name="running mean")
    measured = _validations(fig, record)
    _marks(fig, record, values)
    finite = np.concatenate([y, measured])
    top = max(float(np.nanmax(values)), *measured, 0.0)
    log_axis(fig.update_yaxes, round_ticks(float(np.nanmin(finite)), top), "loss, nat/token")
    return fig.update_xaxes(title="training tokens").update_layout(height=440)


def _validations(fig: go.Figure, record: RunRecord) -> Array:
    """Validation, and that of each text of a mixture apart; every loss that was measured."""
    texts = [name for name in record.rows if name.startswith("validation_loss")]
    found = [np.empty(0)]
    for one, name in enumerate(texts):
        values = record.column(name)
        there = np.isfinite(values)
        if there.any():
            colour = MEASURED if name == "validation_loss" else SHAPES[one % len(SHAPES)]
            marker = {"color": colour, "size": 9, "symbol": "diamond", "line": {"color": "#ffffff", "width": 1}}
            at = {"x": record.column("tokens")[there], "y": values[there]}
            label = ", ".join(["validation", *name.split("/")[1:]])
            fig.add_scatter(**at, mode="markers", marker=marker, name=label)
            found.append(values[there])
    return np.concatenate(found)


def _marks(fig: go.Figure, record: RunRecord, values: Array) -> None:
    """Steps that were skipped, and where data was passed over."""
    looks = (
        ("skipped", "skipped step", "x"),
        ("passed_tokens", "rolled back, and on with later data", "triangle-down"),
    )
    for column, name, symbol in looks:
        here = np.nan_to_num(record.column(column)) > 0
        if here.any():
            marker = {"color": "#b91c1c", "size": 9, "symbol": symbol}
            at = {"x": record.column("tokens")[here], "y": values[here]}
            fig.add_scatter(**at, mode="markers", marker=marker, name=name)


def course(record: RunRecord) -> go.Figure:
    """Learning rate, gradient norm, and, where they were measured, noise scale, imbalance and penalty, over tokens."""
    named = {
        "lr": "learning rate",
        "grad_norm": "gradient norm",
        "noise_tokens": "noise scale, tokens",
        "imbalance": "largest load / mean",
        "penalty": "penalty, nat/token",
    }
    there = {name: title for name, title in named.items() if np.isfinite(record.column(name)).any()}
    fig, tokens = _panels(len(there)), record.column("tokens")
    for row, (name, title) in enumerate(there.items(), 1):
        values = np.where(record.column(name) > 0, record.column(name), np.nan)
        x, y = thinned(tokens, values)
        line = {"color": SHAPES[row % len(SHAPES)], "width": 1.2}
        fig.add_scatter(x=x, y=y, mode="lines", line=line, name=title, showlegend=False, row=row, col=1)
        if name == "grad_norm":
            clip = record.run.train.clip
            fig.add_hline(y=clip, line={"color": LAW, "dash": "dash", "width": 1}, row=row, col=1)
        if name != "lr" and np.isfinite(y).any():
            ticks = round_ticks(float(np.nanmin(y)), float(np.nanmax(y)))
            log_axis(fig.update_yaxes, ticks, title, row=row, col=1)
        else:
            fig.update_yaxes(title=title, row=row, col=1)
    fig.update_xaxes(title="training tokens", row=len(there), col=1)
    return fig.update_layout(height=90 + 190 * len(there))


def speed(record: RunRecord) -> go.Figure:
    """Tokens a second of every step, and their running median's like: the mean of many."""
    fig = _panels(1)
    rate = record.tokens_per_second
    x, y = thinned(record.column("tokens"), rate)
    fig.add_scatter(x=x, y=y, mode="lines", line={"color": SHAPES[1], "width": 1}, opacity=0.3, name="step")
    x, y = thinned(record.column("tokens"), running_mean(rate))
    fig.add_scatter(x=x, y=y, mode="lines", line={"color": SHAPES[1], "width": 2}, name="running mean")
    fig.update_yaxes(title="tokens/s", rangemode="tozero")
    return fig.update_xaxes(title="training tokens").update_layout(height=320)


def heat(found: Heat, quantity: str) -> go.Figure:
    """A map of one quantity, a row a tensor, module or expert in the model's order, a column a sampled step."""
    keep = np.unique(np.linspace(0, len(found.steps) - 1, COLUMNS).round().astype(int))
    values, steps = found.values[:, keep], found.steps[keep]
    names = [html.escape(name) for name in found.names]
    even = quantity == "load"
    shown = values if even else np.log10(np.where(values > 0, values, np.nan))
    said = np.vectorize(lambda value: f"{value:.3g}")(values)
    top = float(np.nanmax(values)) if even else None
    scale = {"zmin": 0, "zmid": 1, "zmax": max(2.0, top or 2.0)} if even else {}
    fig = go.Figure(layout={"template": TEMPLATE})
    fig.add_heatmap(
        x=steps, y=names, z=shown, text=said, colorscale=LOADS if even else HEAT, colorbar=_bar(shown, even),
        hovertemplate="%{y}<br>step %{x}: %{text}<extra></extra>", hoverongaps=False, **scale,
    )  # fmt: skip
    fig.update_yaxes(autorange="reversed", tickfont={"size": 10}, showgrid=False, dtick=1)
    fig.update_xaxes(title="step", showgrid=False)
    pixels = ROW_PIXELS * len(names) + 110
    return fig.update_layout(height=min(MOST_PIXELS, max(LEAST_PIXELS, pixels)), margin={"t": 20, "b": 50})


def _bar(shown: Array, even: bool) -> dict[str, object]:
    if even or not np.isfinite(shown).any():
        return {"thickness": 12}
    low, high = 10 ** float(np.nanmin(shown)), 10 ** float(np.nanmax(shown))
    ticks = round_ticks(low, high)
    return {"thickness": 12, "tickvals": np.log10(ticks), "ticktext": [f"{tick:.3g}" for tick in ticks]}


def thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """At most `POINTS` points: means of equal stretches."""
    size = -(-len(x) // POINTS)
    if size == 1:
        return x, y
    cuts = np.arange(0, len(x), size)
    held = np.add.reduceat(np.isfinite(y).astype(float), cuts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.maximum.reduceat(x, cuts), np.add.reduceat(np.nan_to_num(y), cuts) / held


def running_mean(values: Array) -> Array:
    """The mean of each value and those before it, over a fiftieth of them."""
    size = max(1, len(values) // 50)
    there = np.isfinite(values)
    total, count = np.cumsum(np.where(there, values, 0.0)), np.cumsum(there)
    total[size:], count[size:] = total[size:] - total[:-size], count[size:] - count[:-size]
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


def _panels(rows: int) -> go.Figure:
    fig = make_subplots(rows, 1, shared_xaxes=True, vertical_spacing=0.06)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}}
    return fig.update_layout(template=TEMPLATE, legend=legend).update_xaxes(gridcolor=GRID)
