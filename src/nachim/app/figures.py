"""The figures of a report: numbers in, a plotly figure out. Scale is M throughout, loss is bpb."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from nachim.app.page import power
from nachim.law import IsoFlop, Observations, Study, data_opt, model_opt
from nachim.law.forms import Array
from nachim.law.select import budgets, only

SHAPES = ["#4565d8", "#8a4fc7", "#c8498f", "#e8704a", "#eda52f"]
"""One scale for shapes, small to large, that reads on white and on black."""
DEPTH = [[0, "#5f97cc"], [1, "#f0f5fb"]]
BUDGETS = ["#8fd3c1", "#35a797", "#17786c"]
LAW, BAND, FORECAST, MEASURED = "#7b8494", "rgba(123,132,148,0.22)", "#0ea5e9", "#16a34a"
GRID = "rgba(128,136,150,0.22)"
M_TITLE, D_TITLE, C_TITLE, BPB = "M, FLOP/token", "D, tokens", "training compute C = M·D, FLOP", "validation bpb"
Q90 = 1.645
"""Standard deviations to either side that hold 90 % of a normal distribution."""
ROUND = [
    [1],
    [1, 3],
    [1, 2, 5],
    [1, 1.5, 2, 3, 5, 7],
    *(np.arange(1, 10, step).round(2) for step in (0.5, 0.2, 0.1, 0.01)),
]
"""Leading digits of ticks on a logarithmic axis, from sparse to dense."""

_AXIS = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "ticks": "outside", "tickcolor": GRID}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', sans-serif", "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 75, "r": 20, "t": 40, "b": 65},
        "hoverlabel": {"bgcolor": "#1c2430", "font": {"color": "#ffffff"}},
        "xaxis": _AXIS,
        "yaxis": {**_AXIS, "automargin": True, "title": {"standoff": 10}},
        "height": 460,
    }
)


@dataclass(frozen=True)
class Curve:
    """A training curve: `loss` (nat/token) of the steps that end at `tokens`; `validation` is (tokens, nat/token)."""

    shape: str
    scale: float
    tokens: Array
    loss: Array
    validation: tuple[Array, Array] | None = None


def loss_against_compute(
    obs: Observations, reading: Study | None, sealed: Mapping[str, Any] | None, measured: float | None
) -> go.Figure:
    """Every run, the law's compute-optimal frontier with its 90 % band, the sealed forecast and what was measured."""
    fig = _panels([0.75, 0.25], ["", "the target, enlarged"], 0.09) if sealed else _panels([1.0], [""])
    if reading:
        top = 1.4 * max(float(obs.flops.max()), float(sealed["flops"]) if sealed else 0.0)
        flops = np.geomspace(obs.flops.min(), top, 80)
        point, low, high = reading.predict(*reading.fit.allocation(flops))
        _band(fig, flops, low, high, "90 % prediction interval")
        fig.add_scatter(
            x=flops, y=point, mode="lines", line={"color": LAW}, name="law at its optimum", hoverinfo="skip"
        )
    _runs(fig, obs, obs.flops, obs.loss)
    if sealed:
        _forecast(fig, float(sealed["flops"]), sealed, measured, col=1)
        _forecast(fig, "target", sealed, measured, col=2)
        fig.update_xaxes(showticklabels=False, ticks="", row=1, col=2)
    _log(fig, "x", C_TITLE)
    fig.update_yaxes(title=BPB, row=1, col=1)
    return fig


def isoflop_curves(obs: Observations, reading: Study, second: IsoFlop | None) -> go.Figure:
    """Loss against scale, one curve a budget: runs, the law, and the minimum of the budget's parabola."""
    fig = _panels([1.0], [""])
    x, label = obs.x(reading.fit.scale), budgets(obs.flops)
    colours = _colours(BUDGETS, int(label.max()) + 1)
    for number, colour in enumerate(colours):
        here, flops = label == number, float(np.exp(np.log(obs.flops[label == number]).mean()))
        wide = np.geomspace(x[here].min() / 1.4, x[here].max() * 1.4, 60)
        name = f"{power(flops)} FLOP"
        law = reading.fit.predict(wide, flops / wide)
        fig.add_scatter(
            x=wide, y=law, mode="lines", line={"color": colour}, legendgroup=name, showlegend=False, hoverinfo="skip"
        )
        marker = {"color": colour, "size": 8}
        fig.add_scatter(x=x[here], y=obs.loss[here], mode="markers", marker=marker, name=name, legendgroup=name)
    inside = [minimum for minimum in second.minima if not minimum.at_edge] if second else []
    if inside:
        marker = {"symbol": "x-thin", "size": 13, "line": {"width": 2.5, "color": FORECAST}}
        place = {"x": [minimum.x for minimum in inside], "y": [minimum.loss for minimum in inside]}
        fig.add_scatter(**place, mode="markers", marker=marker, name="parabola's minimum")
    _log(fig, "x", M_TITLE)
    return fig.update_yaxes(title=BPB)


def loss_surface(obs: Observations, reading: Study, target: tuple[float, float] | None) -> go.Figure:
    """Contours of the law's log loss over (M, D), the runs, the efficient line and the `target` (M, D)."""
    fig = _panels([1.0], [""])
    x = obs.x(reading.fit.scale)
    ends = [np.append(column, target[place]) if target else column for place, column in enumerate((x, obs.tokens))]
    scale, tokens = (np.geomspace(column.min() / 1.6, column.max() * 1.6, 70) for column in ends)
    surface = np.log(reading.fit.predict(scale[None, :], tokens[:, None]))
    levels = np.linspace(surface.min(), surface.max(), 9)
    bar = {
        "tickvals": levels,
        "ticktext": [f"{level:.2f}" for level in np.exp(levels)],
        "title": "bpb",
        "len": 0.62,
        "y": 0.31,
    }
    fig.add_contour(
        x=scale, y=tokens, z=surface, colorscale=DEPTH, colorbar=bar, hoverinfo="skip",
        contours={"start": levels[0], "end": levels[-1], "size": (levels[-1] - levels[0]) / 24}, line={"width": 0.5},
    )  # fmt: skip
    fastest = np.geomspace(obs.flops.min() / 3, 3 * scale[-1] * tokens[-1], 200)
    best, data = reading.fit.allocation(fastest)
    inside = (best >= scale[0]) & (best <= scale[-1]) & (data >= tokens[0]) & (data <= tokens[-1])
    line = {"color": "#e11d48", "dash": "dash", "width": 2}
    fig.add_scatter(x=best[inside], y=data[inside], mode="lines", line=line, name="efficient line", hoverinfo="skip")
    _runs(fig, obs, x, obs.tokens)
    if target:
        _star(fig, *target, name="target")
    _log(fig, "x", M_TITLE)
    _log(fig, "y", D_TITLE)
    return fig.update_layout(height=520)


def allocation(
    reading: Study, levels: tuple[float, float], second: IsoFlop | None, target: tuple[float, float] | None
) -> go.Figure:
    """Optimal M and D over compute between `levels`, with 90 % intervals, and DeepSeek's published law beside them."""
    fig = _panels([0.5, 0.5], ["optimal model scale", "optimal tokens"], 0.1)
    flops = np.geomspace(*levels, 24)
    found = [reading.allocation(each) for each in flops]
    inside = [minimum for minimum in second.minima if not minimum.at_edge] if second else []
    sides = [
        ([a.x for a in found], [a.x_interval for a in found], model_opt(flops), [m.x for m in inside]),
        (
            [a.tokens for a in found],
            [a.tokens_interval for a in found],
            data_opt(flops),
            [m.flops / m.x for m in inside],
        ),
    ]
    for col, (best, ends, published, minima) in enumerate(sides, 1):
        low, high = np.array(ends).T
        _band(fig, flops, low, high, "90 % interval", col)
        common = {"row": 1, "col": col, "showlegend": col == 1}
        fig.add_scatter(x=flops, y=best, mode="lines", line={"color": LAW}, name="law", **common)
        dashes = {"color": SHAPES[3], "dash": "dash"}
        fig.add_scatter(x=flops, y=published, mode="lines", line=dashes, name="DeepSeek's law", **common)
        if minima:
            marker = {"symbol": "x-thin", "size": 12, "line": {"width": 2.5, "color": FORECAST}}
            at = [minimum.flops for minimum in inside]
            fig.add_scatter(x=at, y=minima, mode="markers", marker=marker, name="parabola's minimum", **common)
        if target:
            _star(fig, target[0] * target[1], target[col - 1], name="target", col=col)
    for col, title in enumerate((M_TITLE, D_TITLE), 1):
        _log(fig, "x", C_TITLE, col)
        _log(fig, "y", title, col)
    return fig


def sweep(tries: Sequence[tuple[float, float, float]], chosen: tuple[float, float] | None) -> go.Figure:
    """Loss over learning rate and over batch: `tries` are (lr, batch tokens, bpb), `chosen` is (lr, batch tokens)."""
    fig = _panels([0.5, 0.5], ["learning rate", "batch"], 0.1)
    table = np.array(tries, float)
    for col, (title, other) in enumerate((("peak learning rate", 1), ("batch, tokens", 0)), 1):
        usual = max(set(table[:, other]), key=lambda value: int((table[:, other] == value).sum()))
        kept = table[table[:, other] == usual]
        kept = kept[np.argsort(kept[:, col - 1])]
        fig.add_scatter(
            x=kept[:, col - 1], y=kept[:, 2], mode="lines+markers", marker={"size": 9, "color": SHAPES[0]},
            line={"width": 1}, name="sweep run", row=1, col=col, showlegend=col == 1,
        )  # fmt: skip
        if chosen:
            line = {"color": FORECAST, "dash": "dash"}
            fig.add_vline(x=chosen[col - 1], line=line, row=1, col=col)
            if col == 1:
                fig.add_scatter(x=[None], y=[None], mode="lines", line=line, name="chosen", row=1, col=1)
        ticks = kept[:, col - 1]
        said = [f"{each:.3g}" if each < 1 else f"{each:,.0f}" for each in ticks]
        fig.update_xaxes(title=title, type="log", tickvals=ticks, ticktext=said, row=1, col=col)
    fig.update_yaxes(matches="y", row=1, col=2).update_yaxes(title=BPB, row=1, col=1)
    return fig.update_layout(height=360)


def residuals(obs: Observations, reading: Study, noise: float | None) -> go.Figure:
    """How far each run lies off the law, in percent; the band holds 90 % of runs that differ in their seed alone."""
    fig = _panels([1.0], [""])
    if noise:
        span = np.array([obs.flops.min() / 1.2, obs.flops.max() * 1.2])
        low, high = (np.full(2, 100 * math.expm1(sign * Q90 * noise)) for sign in (-1, 1))
        _band(fig, span, low, high, "90 % of run noise")
    fig.add_hline(y=0, line={"color": LAW, "width": 1})
    _runs(fig, obs, obs.flops, 100 * np.expm1(reading.fit.residuals))
    _log(fig, "x", C_TITLE)
    return fig.update_yaxes(title="measured over law, %").update_layout(height=380)


def training_curves(curves: Sequence[Curve], target: Curve | None) -> go.Figure:
    """Training loss over tokens, averaged in equal steps of log tokens; the target's validations."""
    fig = _panels([1.0], [""])
    scales = {curve.shape: curve.scale for curve in curves}
    names = sorted(scales, key=lambda name: scales[name])
    colours = dict(zip(names, _colours(SHAPES, len(names)), strict=True))
    for curve in sorted(curves, key=lambda each: each.scale):
        new = curve.shape not in {trace.legendgroup for trace in fig.data}
        line = {"color": colours[curve.shape], "width": 1}
        tokens, loss = smooth(curve.tokens, curve.loss)
        fig.add_scatter(
            x=tokens, y=loss, mode="lines", line=line, opacity=0.75, name=html.escape(curve.shape),
            legendgroup=curve.shape, showlegend=new, hoverinfo="name",
        )  # fmt: skip
    if target:
        tokens, loss = smooth(target.tokens, target.loss)
        fig.add_scatter(x=tokens, y=loss, mode="lines", line={"color": MEASURED, "width": 2.2}, name="target")
        if target.validation and len(target.validation[0]):
            marker = {"color": MEASURED, "size": 9, "symbol": "diamond", "line": {"color": "#ffffff", "width": 1}}
            at, value = target.validation
            fig.add_scatter(x=at, y=value, mode="markers", marker=marker, name="target, validation")
    _log(fig, "x", "training tokens")
    _log(fig, "y", "loss, nat/token")
    return fig.update_layout(height=480)


def rollouts(reading: Study) -> go.Figure:
    """How far forecasts of dearer runs from cheaper ones were off, in percent, over how far they reached."""
    fig = _panels([1.0], [""])
    rolled = reading.rollouts
    looks = ((SHAPES[0], "circle"), (SHAPES[3], "diamond-open"), (SHAPES[2], "cross-thin-open"))
    for name, (colour, symbol) in zip(reading.errors, looks, strict=False):
        if not len(rolled.cuts):
            break
        off = 100 * np.expm1(rolled.actual - rolled.mean(only(reading.shares, name)))
        chosen = ", chosen" if name == reading.fit.law.name else ""
        fig.add_scatter(
            x=np.exp(rolled.far[rolled.ahead]), y=off[rolled.ahead], mode="markers", opacity=0.7,
            marker={"color": colour, "size": 7, "symbol": symbol},
            name=f"{name}: {reading.errors[name]:.2f} %{chosen}",
        )  # fmt: skip
    fig.add_hline(y=0, line={"color": LAW, "width": 1})
    _log(fig, "x", "compute of the forecast run / dearest run fitted")
    return fig.update_yaxes(title="measured over forecast, %").update_layout(height=380)


def smooth(tokens: Array, loss: Array, step: float = 0.04) -> tuple[Array, Array]:
    """Means of `tokens` and `loss` in steps of `step` in log10 of tokens, alike for all runs; empty in, empty out."""
    tokens, loss = tokens[np.isfinite(loss)], loss[np.isfinite(loss)]
    if not len(tokens):
        return tokens, loss
    _, place = np.unique(np.floor(np.log10(tokens) / step), return_inverse=True)
    held = np.bincount(place)
    return np.bincount(place, tokens) / held, np.bincount(place, loss) / held


def _panels(widths: Sequence[float], titles: Sequence[str], gap: float = 0.0) -> go.Figure:
    fig = make_subplots(1, len(widths), column_widths=list(widths), horizontal_spacing=gap, subplot_titles=list(titles))
    fig.update_annotations(font_size=13)
    above = 1.09 if any(titles) else 1.02
    legend = {"orientation": "h", "y": above, "yanchor": "bottom", "x": 0, "font": {"size": 12}}
    return fig.update_layout(template=TEMPLATE, legend=legend)


def _colours(scale: Sequence[str], count: int) -> list[str]:
    return list(sample_colorscale(list(scale), list(np.linspace(0, 1, count)) if count > 1 else [0.0]))


def _runs(fig: go.Figure, obs: Observations, across: Array, up: Array) -> None:
    """The runs as points, one trace a shape, small to large; repeats with another seed are open circles, and runs that
    no law was fitted to are crosses."""
    scale = obs.x(obs.scales[0])
    group = obs.group if obs.group is not None else np.array([f"M = {each:.3g}" for each in scale])
    names = sorted(set(group.tolist()), key=lambda name: float(scale[group == name].min()))
    seed = np.zeros(len(obs)) if obs.seed is None else obs.seed
    first = seed == seed[0]
    for name, colour in zip(names, _colours(SHAPES, len(names)), strict=True):
        here = group == name
        symbols = np.where(obs.weight[here] == 0, "x-thin", np.where(first[here], "circle", "circle-open"))
        marker = {"color": colour, "size": 8, "symbol": symbols, "line": {"width": 1.5, "color": colour}}
        said = [
            f"M {m:.3g}, D {d:.3g}, bpb {b:.4f}"
            for m, d, b in zip(scale[here], obs.tokens[here], obs.loss[here], strict=True)
        ]
        fig.add_scatter(
            x=across[here], y=up[here], mode="markers", marker=marker, name=html.escape(name), text=said,
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )  # fmt: skip


def _band(fig: go.Figure, across: Array, low: Array, high: Array, name: str, col: int = 1) -> None:
    fig.add_scatter(
        x=np.concatenate([across, across[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself", fillcolor=BAND,
        mode="lines", line={"width": 0}, name=name, hoverinfo="skip", showlegend=col == 1, row=1, col=col,
    )  # fmt: skip


def _forecast(fig: go.Figure, at: Any, sealed: Mapping[str, Any], measured: float | None, col: int) -> None:
    bpb = float(sealed["bpb"])
    reach = {"type": "data", "array": [sealed["high"] - bpb], "arrayminus": [bpb - sealed["low"]], "thickness": 2}
    marker = {"color": FORECAST, "size": 10, "symbol": "square"}
    fig.add_scatter(
        x=[at], y=[bpb], error_y=reach, mode="markers", marker=marker, name="sealed forecast", showlegend=col == 1,
        row=1, col=col,
    )  # fmt: skip
    if measured is not None:
        _star(fig, at, measured, name="measured", col=col, first=col == 1)


def _star(fig: go.Figure, x: Any, y: float, name: str, col: int = 1, first: bool | None = None) -> None:
    marker = {"color": MEASURED, "size": 15, "symbol": "star", "line": {"color": "#ffffff", "width": 1}}
    show = col == 1 if first is None else first
    fig.add_scatter(x=[x], y=[y], mode="markers", marker=marker, name=name, showlegend=show, row=1, col=col)


def _log(fig: go.Figure, axis: str, title: str, col: int = 1) -> None:
    """Make `axis` ("x" or "y") of panel `col` logarithmic, with round ticks that say their power of ten."""
    name = axis if col == 1 else f"{axis}{col}"
    traces = [trace for trace in fig.data if (trace[f"{axis}axis"] or axis) == name]
    values = np.concatenate([np.asarray(trace[axis], float).ravel() for trace in traces])
    ticks = round_ticks(float(np.nanmin(values)), float(np.nanmax(values)))
    update = fig.update_xaxes if axis == "x" else fig.update_yaxes
    log_axis(update, ticks, title, row=1, col=col)


def log_axis(update: Callable[..., object], ticks: list[float], title: str, **place: int) -> None:
    """Make an axis logarithmic, by a figure's `update_xaxes` or `update_yaxes`, with `ticks` spelt out."""
    update(type="log", title=title, tickvals=ticks, ticktext=[spelt(each) for each in ticks], **place)


def round_ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`, about even in ratio: those of the sparsest set in `ROUND` that has four."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for digits in ROUND:
        inside = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        inside = [value for value in inside if low / 1.1 <= value <= high * 1.1]
        if len(inside) >= 4:
            break
    return inside[:: 1 + len(inside) // 12]


def spelt(value: float) -> str:
    """A tick's value, as a power of ten where that is shorter."""
    if 1e-3 <= value < 1e4:
        return f"{value:.4g}"
    digit, exponent = f"{value:.2e}".split("e")
    exponent = f"10<sup>{int(exponent)}</sup>"
    return exponent if float(digit) == 1 else f"{float(digit):g}×{exponent}"
