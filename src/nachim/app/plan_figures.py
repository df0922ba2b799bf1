"""The figures of a plan's page. Those that sliders move are drawn here without numbers, which plan_page.js fills in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from nachim.app.figures import BAND, DEPTH, FORECAST, LAW, MEASURED, SHAPES, TEMPLATE, round_ticks, spelt

D_TITLE, SIZE, LOSS, DOLLARS = "D, training tokens", "parameters in all", "loss, nat/token", "dollars"
ISO, CHINCHILLA, FREE = "#e11d48", "#e8704a", "rgba(128,136,150,0.25)"
SERVE_LINE = "#8a4fc7"


def moving(facts: dict[str, Any]) -> dict[str, go.Figure]:
    """The figures that sliders move, by the name under which plan_page.js finds them."""
    return {"surface": surface(facts), "slice": isoflop(facts), "cost": cost(), "split": split()}


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
    within = f"up to {100 * facts['epsilon']:g} % more than the least of a real shape"
    fig.add_scatter(fill="toself", fillcolor=BAND, mode="lines", line={"width": 0}, name=within, hoverinfo="skip")
    fig.add_scatter(mode="lines", line={"color": LAW, "width": 2}, name="the law at this budget", hoverinfo="skip")
    _points(fig, "real shapes", SHAPES[3], "circle-open", 7)
    _points(fig, "designs of the plan", FORECAST, "circle", 9)
    _points(fig, "the law's optimum", MEASURED, "star", 15)
    fig.update_xaxes(type="log", title=facts["lossLaw"]["title"])
    return fig.update_yaxes(title=LOSS)


def cost() -> go.Figure:
    """Total dollars over parameters and tokens; the line of the wanted loss, Chinchilla's point and the chosen one."""
    fig = _empty(500)
    bar = {"title": DOLLARS, "len": 0.62, "y": 0.31, "thickness": 18}
    fig.add_contour(colorscale=DEPTH, ncontours=24, line={"width": 0.5}, colorbar=bar, hoverinfo="skip")
    line = {"color": ISO, "dash": "dash", "width": 2}
    fig.add_scatter(mode="lines+markers", line=line, marker={"size": 5}, name="the wanted loss", hoverinfo="skip")
    _two_models(fig)
    fig.update_xaxes(type="log", title=SIZE)
    return fig.update_yaxes(type="log", title=D_TITLE)


def split() -> go.Figure:
    """Dollars over parameters at the wanted loss: training, serving, and both."""
    fig = _empty(430)
    for name, colour, width in (("training", SHAPES[0], 2), ("serving", SERVE_LINE, 2), ("both", LAW, 3)):
        fig.add_scatter(mode="lines", line={"color": colour, "width": width}, name=name)
    _two_models(fig)
    fig.update_xaxes(type="log", title=SIZE)
    return fig.update_yaxes(type="log", title=DOLLARS)


@dataclass(frozen=True)
class Piece:
    """A piece of a bar: what it is, how much, and its colour."""

    name: str
    amount: float
    colour: str


def pieces(parts: Sequence[tuple[str, float]], total: float, rest: str) -> list[Piece]:
    """Those of `parts` (name, amount) that are not zero, and what is left to `total`, called `rest`."""
    held = [(name, amount) for name, amount in parts if amount > 0]
    colours = sample_colorscale(SHAPES, [place / max(1, len(held) - 1) for place in range(len(held))])
    found = [Piece(name, amount, colour) for (name, amount), colour in zip(held, colours, strict=True)]
    left = total - sum(amount for _, amount in held)
    return [*found, Piece(rest, left, FREE)] if left > 1e-9 * total else found


def bar(held: Sequence[Piece], unit: str) -> go.Figure:
    """One bar of the pieces, each as long as its amount in `unit`."""
    fig = _empty(150)
    for piece in held:
        said = f"{piece.name}: {piece.amount:.3g} {unit}"
        fig.add_bar(
            x=[piece.amount], y=[""], orientation="h", marker={"color": piece.colour, "line": {"width": 0}},
            hovertemplate=f"{said}<extra></extra>", showlegend=False,
        )  # fmt: skip
    fig.update_layout(barmode="stack", margin={"l": 12, "r": 20, "t": 10, "b": 50}, bargap=0.2)
    return fig.update_yaxes(visible=False).update_xaxes(title=unit)


def _empty(height: int) -> go.Figure:
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}}
    return go.Figure(layout={"template": TEMPLATE, "legend": legend, "height": height, "xaxis": {"automargin": True}})


def _points(fig: go.Figure, name: str, colour: str, symbol: str, size: int) -> None:
    edge = colour if symbol.endswith("-open") else "#ffffff"
    marker = {"color": colour, "size": size, "symbol": symbol, "line": {"color": edge, "width": 1}}
    hover = "%{text}<extra>%{fullData.name}</extra>"
    fig.add_scatter(mode="markers", marker=marker, name=name, hovertemplate=hover)


def _two_models(fig: go.Figure) -> None:
    _points(fig, "cheapest to train (Chinchilla)", CHINCHILLA, "diamond", 12)
    _points(fig, "cheapest in all", MEASURED, "star", 16)


def _range(values: Sequence[float]) -> list[float]:
    return [math.log10(min(values)), math.log10(max(values))]


def _log(title: str, values: Sequence[float]) -> dict[str, Any]:
    ticks = round_ticks(min(values), max(values))
    return {"type": "log", "title": title, "tickvals": ticks, "ticktext": [spelt(each) for each in ticks]}
