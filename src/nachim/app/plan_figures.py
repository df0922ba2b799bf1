"""The figures of a plan's page. Those that sliders move are drawn here without numbers, which plan_page.js fills in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from nachim.app.figures import BAND, DEPTH, FORECAST, LAW, MEASURED, SHAPES, TEMPLATE, round_ticks, spelt

D_TITLE, LOSS, DOLLARS = "D, training tokens", "loss, nat/token", "dollars"
ISO, CHINCHILLA, FREE = "#e11d48", "#e8704a", "rgba(128,136,150,0.25)"
SERVE_LINE = "#8a4fc7"
TOKENS, MONEY = (1e4, 1e16), (1e-6, 1e14)
"""Ranges that no slider leaves, for ticks."""


def moving(facts: dict[str, Any]) -> dict[str, go.Figure]:
    """The figures that sliders move, by the name under which plan_page.js finds them."""
    return {"surface": surface(facts), "slice": isoflop(facts), "cost": cost(facts), "split": split(facts)}


def surface(facts: dict[str, Any]) -> go.Figure:
    """Loss over scale and tokens; the budget's line, what lies within epsilon of its least loss, designs, optimum."""
    fig = _empty(520)
    grid = facts["grid"]
    bar = {"title": "nat/token", "len": 0.62, "y": 0.31, "thickness": 18}
    fig.add_contour(
        x=grid["x"], y=grid["tokens"], colorscale=DEPTH, colorbar=bar, ncontours=26, line={"width": 0.5},
        hovertemplate="%{z:.3f} nat/token<extra></extra>",
    )  # fmt: skip
    fig.add_scatter(mode="lines", line={"color": ISO, "dash": "dash", "width": 2}, name="the budget", hoverinfo="skip")
    within = f"within {100 * facts['epsilon']:g} % of its least loss"
    fig.add_scatter(mode="lines", line={"color": ISO, "width": 6}, opacity=0.55, name=within, hoverinfo="skip")
    _points(fig, "designs of the plan", FORECAST, "circle", 9)
    _points(fig, "the law's optimum", MEASURED, "star", 15)
    fig.update_xaxes(_log(facts["lossLaw"]["title"], grid["x"]), range=_range(grid["x"]))
    return fig.update_yaxes(_log(D_TITLE, grid["tokens"]), range=_range(grid["tokens"]))


def isoflop(facts: dict[str, Any]) -> go.Figure:
    """Loss over scale at the budget: the law's curve, the band of epsilon, every real shape, the plan's designs."""
    fig = _empty(430)
    within = f"{100 * facts['epsilon']:g} % more than the least loss"
    fig.add_scatter(fill="toself", fillcolor=BAND, mode="lines", line={"width": 0}, name=within, hoverinfo="skip")
    fig.add_scatter(mode="lines", line={"color": LAW, "width": 2}, name="the law at this budget", hoverinfo="skip")
    _points(fig, "real shapes", SHAPES[3], "circle-open", 7)
    _points(fig, "designs of the plan", FORECAST, "circle", 9)
    _points(fig, "the law's optimum", MEASURED, "star", 15)
    fig.update_xaxes(_log(facts["lossLaw"]["title"], facts["grid"]["x"], dense=True))
    return fig.update_yaxes(title=LOSS)


def cost(facts: dict[str, Any]) -> go.Figure:
    """Total dollars over parameters and tokens; the line of the wanted loss, Chinchilla's point and the chosen one."""
    fig = _empty(500)
    ticks = [float(f"{digit}e{power}") for power in range(-6, 14) for digit in (1, 2, 5)]
    bar = {"title": DOLLARS, "len": 0.62, "y": 0.31, "thickness": 18}
    fig.add_contour(
        colorscale=DEPTH, ncontours=24, line={"width": 0.5}, hovertemplate="$10<sup>%{z:.2f}</sup><extra></extra>",
        colorbar=bar | {"tickvals": _log10(ticks), "ticktext": [f"${short_money(each)}" for each in ticks]},
    )  # fmt: skip
    line = {"color": ISO, "dash": "dash", "width": 2}
    fig.add_scatter(mode="lines+markers", line=line, marker={"size": 5}, name="the wanted loss", hoverinfo="skip")
    _two_models(fig)
    fig.update_xaxes(_log("parameters in all", _params(facts), dense=True))
    return fig.update_yaxes(_log(D_TITLE, TOKENS, dense=True))


def split(facts: dict[str, Any]) -> go.Figure:
    """Dollars over parameters at the wanted loss: training, serving, and both."""
    fig = _empty(430)
    for name, colour, width in (("training", SHAPES[0], 2), ("serving", SERVE_LINE, 2), ("both", LAW, 3)):
        fig.add_scatter(mode="lines", line={"color": colour, "width": width}, name=name)
    _two_models(fig)
    fig.update_xaxes(_log("parameters in all", _params(facts), dense=True))
    return fig.update_yaxes(_log(DOLLARS, MONEY, dense=True, money=True))


def bar(parts: Sequence[tuple[str, float]], unit: str, total: float, rest: str) -> go.Figure:
    """One bar of `parts` (name, amount) stacked to `total`, in `unit`; what is left of it is called `rest`."""
    fig = _empty(250)
    held = [(name, amount) for name, amount in parts if amount > 0]
    colours = sample_colorscale(SHAPES, [i / max(1, len(held) - 1) for i in range(len(held))])
    left = total - sum(amount for _, amount in held)
    for (name, amount), colour in zip(held, colours, strict=True):
        _piece(fig, name, amount, unit, colour)
    if left > 1e-9 * total:
        _piece(fig, rest, left, unit, FREE)
    fig.update_layout(barmode="stack", margin={"l": 12, "r": 20, "t": 90, "b": 50}, bargap=0.25)
    fig.update_yaxes(visible=False)
    return fig.update_xaxes(title=unit, range=[0, 1.02 * max(total, sum(amount for _, amount in held))])


def short_money(value: float) -> str:
    """Dollars as 20k, 5M."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _piece(fig: go.Figure, name: str, amount: float, unit: str, colour: str) -> None:
    said = f"{name}: {amount:.3g} {unit}"
    fig.add_bar(
        x=[amount], y=[""], orientation="h", name=said, marker={"color": colour, "line": {"width": 0}},
        hovertemplate=f"{said}<extra></extra>",
    )  # fmt: skip


def _empty(height: int) -> go.Figure:
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}}
    return go.Figure(layout={"template": TEMPLATE, "legend": legend, "height": height})


def _points(fig: go.Figure, name: str, colour: str, symbol: str, size: int) -> None:
    edge = colour if symbol.endswith("-open") else "#ffffff"
    marker = {"color": colour, "size": size, "symbol": symbol, "line": {"color": edge, "width": 1}}
    hover = "%{text}<extra>%{fullData.name}</extra>"
    fig.add_scatter(mode="markers", marker=marker, name=name, hovertemplate=hover)


def _two_models(fig: go.Figure) -> None:
    _points(fig, "cheapest to train (Chinchilla)", CHINCHILLA, "diamond", 12)
    _points(fig, "cheapest in all", MEASURED, "star", 16)


def _params(facts: dict[str, Any]) -> list[float]:
    return [shape["params"] for shape in facts["shapes"]]


def _log10(values: Sequence[float]) -> list[float]:
    return [math.log10(value) for value in values]


def _range(values: Sequence[float]) -> list[float]:
    return _log10([min(values), max(values)])


def _log(title: str, values: Sequence[float], dense: bool = False, money: bool = False) -> dict[str, Any]:
    """A logarithmic axis over `values`; `dense` has 1, 2 and 5 of every decade, for axes that are zoomed into."""
    low, high = min(values), max(values)
    ticks = round_ticks(low, high)
    if dense:
        every = (float(f"{digit}e{power}") for power in range(-8, 20) for digit in (1, 2, 5))
        ticks = [value for value in every if low / 2 <= value <= 2 * high]
    said = [f"${short_money(each)}" if money else spelt(each) for each in ticks]
    return {"type": "log", "title": title, "tickvals": ticks, "ticktext": said}
