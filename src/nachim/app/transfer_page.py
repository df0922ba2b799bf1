"""The page of refitted laws: regret over learning rate and batch, the optima against tokens, and the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from nachim.app.figures import BAND, LAW, SHAPES, TEMPLATE, round_ticks
from nachim.app.figures import spelt as tick
from nachim.app.page import Html, bullets, cards, document, element, figure, short, table
from nachim.app.transfer import spelt
from nachim.law.forms import FLOPS_PER_UNIT, Array
from nachim.law.hyper import Hyper
from nachim.law.sweep import SPELT
from nachim.law.transfer import PUBLISHED
from nachim.spec.disk import write_text

CONFIG = {"displayModeBar": False, "responsive": True}
LEVELS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Regrets at which contours are drawn, percent."""
SCALE = [[0, "#1f6fb4"], [0.35, "#8fbfe3"], [0.6, "#f1ece0"], [0.8, "#f0a868"], [1, "#c43c39"]]
TITLES = {"lr": "peak learning rate", "batch_tokens": "batch, tokens"}
GRID, PANELS = 90, 6


def write_page(path: Path, fitted: Hyper, summary: dict[str, Any]) -> None:
    """Write the page of `fitted` to `path`, atomically."""
    at = summary["at"]
    where = f"{short(at[summary['scale']])} {'parameters' if summary['scale'] == 'params' else 'FLOP/token'}"
    both = "batch_tokens" in fitted.sweep.axes
    main = contours(fitted, (at[summary["scale"]], at["tokens"])) if both else curve(fitted, summary)
    page = document(
        "nachim: learning rate and batch",
        get_plotlyjs(),
        element("header", element("h1", "nachim transfer")),
        element("div", _sentence(summary, where), kind=f"verdict {_kind(summary)}"),
        bullets("What to beware of", [f"{text}." for text in summary["warnings"]], "gaps"),
        cards(_cards(summary)),
        figure(f"Regret at {where} and {short(at['tokens'])} tokens", _html(main), _main_caption(both), ""),
        *([figure("The sweeps", _html(sweeps(fitted)), SWEEPS_CAPTION, "")] if both else []),
        figure("How the optimum moves", _html(optima(fitted)), OPTIMA_CAPTION, ""),
        element("h2", "Numbers"),
        *_tables(summary),
    )
    write_text(path, page)


SWEEPS_CAPTION = (
    "The bowl at swept (scale, tokens), cheapest to dearest, with their runs: a point's colour is the run's own excess "
    "over the best run there, on the scale of the picture. Where points and picture differ in colour, the bowl misses."
)
OPTIMA_CAPTION = (
    "Best learning rate and batch against tokens, one colour a model scale. Lines are the laws, points the best run of "
    "each sweep: they sit on its grid, and which of several near-equal runs wins is luck, so they scatter by a step."
)


def _main_caption(both: bool) -> str:
    if not both:
        return "Loss over the least loss as the learning rate moves; points are runs, where there are any."
    return (
        "How much more than its least the loss is, in percent, by the fitted bowl. The cross is the law's optimum with "
        "its 90 % interval; diamonds are what published laws advise; points are runs, where there are any."
    )


def contours(fitted: Hyper, at: tuple[float, float]) -> go.Figure:
    """Regret over learning rate and batch at one (scale, tokens): bowl, optimum, published advice, runs."""
    fig = go.Figure(layout={"template": TEMPLATE, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}})
    lr, batch = _span(fitted, at)
    fig.add_trace(_contour(fitted, at, lr, batch, bar=True))
    _runs(fig, fitted, at)
    bands = fitted.bands(*at)
    ends = {name: np.array(bands[name].interval90) for name in ("lr", "batch_tokens")}
    best = {name: bands[name].best for name in ends}
    fig.add_scatter(
        x=[best["lr"]], y=[best["batch_tokens"]], mode="markers", name="refitted optimum",
        marker={"symbol": "cross-thin", "size": 16, "line": {"width": 3, "color": "#0b1220"}},
        error_x=_error(best["lr"], ends["lr"]), error_y=_error(best["batch_tokens"], ends["batch_tokens"]),
    )  # fmt: skip
    params = at[0] * FLOPS_PER_UNIT[fitted.sweep.scale] / FLOPS_PER_UNIT["params"]
    for (name, planes), colour in zip(PUBLISHED.items(), ("#7c3aed", "#0f766e"), strict=True):
        fig.add_scatter(
            x=[float(planes.lr(params, at[1]))], y=[float(planes.batch_tokens(params, at[1]))], mode="markers",
            name=name,
            marker={"symbol": "diamond", "size": 12, "color": colour, "line": {"width": 1.5, "color": "#ffffff"}},
        )  # fmt: skip
    _log(fig.update_xaxes, lr, TITLES["lr"])
    _log(fig.update_yaxes, batch, TITLES["batch_tokens"])
    return fig.update_layout(height=560)


def curve(fitted: Hyper, summary: dict[str, Any]) -> go.Figure:
    """Regret over the learning rate alone, where the batch was not swept."""
    at = (summary["at"][summary["scale"]], summary["at"]["tokens"])
    fig = go.Figure(layout={"template": TEMPLATE, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}})
    lr, _ = _span(fitted, at)
    best = fitted.log_best(*at)
    rows = np.repeat(best, len(lr), axis=0)
    rows[:, 0] = np.log(lr)
    fig.add_scatter(x=lr, y=fitted.regret(*at, rows), mode="lines", line={"color": LAW, "width": 2}, name="the bowl")
    band = summary["at"]["bands"]["lr"]
    fig.add_vrect(x0=band["interval90"][0], x1=band["interval90"][1], fillcolor=BAND, line_width=0)
    here = _here(fitted, at)
    if here.any():
        z, excess = fitted.sweep.z[here, 0], 100 * np.expm1(fitted.sweep.excess[here])
        fig.add_scatter(x=np.exp(z), y=excess, mode="markers", marker={"color": SHAPES[0], "size": 8}, name="runs")
    _log(fig.update_xaxes, lr, TITLES["lr"])
    return fig.update_yaxes(title="regret, %", rangemode="tozero")


def sweeps(fitted: Hyper) -> go.Figure:
    """The bowl and the runs at up to six of the sweeps, from the cheapest to the dearest."""
    sweep = fitted.sweep
    cells = np.flatnonzero(sweep.swept("lr"))
    cells = cells[np.argsort(sweep.cells[cells].prod(axis=1))]
    cells = cells[np.unique(np.linspace(0, len(cells) - 1, PANELS).round().astype(int))]
    letter = "N" if sweep.scale == "params" else "M"
    titles = [f"{letter} {short(sweep.cells[n, 0])}, D {short(sweep.cells[n, 1])}" for n in cells]
    rows = (len(cells) + 2) // 3
    fig = make_subplots(
        rows, 3, subplot_titles=titles, horizontal_spacing=0.07, vertical_spacing=0.3 / rows, shared_yaxes=False
    )
    for place, number in enumerate(cells):
        at = (float(sweep.cells[number, 0]), float(sweep.cells[number, 1]))
        where = {"row": place // 3 + 1, "col": place % 3 + 1}
        lr, batch = _span(fitted, at)
        fig.add_trace(_contour(fitted, at, lr, batch, bar=place == 0), **where)
        _runs(fig, fitted, at, place == 0, **where)
        best = np.exp(fitted.log_best(*at)[0])
        marker = {"symbol": "cross-thin", "size": 13, "line": {"width": 3, "color": "#0b1220"}}
        fig.add_scatter(
            x=[best[sweep.axes.index("lr")]], y=[best[sweep.axes.index("batch_tokens")]], mode="markers", marker=marker,
            name="law", showlegend=place == 0, **where,
        )  # fmt: skip
        _log(fig.update_xaxes, lr, TITLES["lr"] if where["row"] == rows else "", **where)
        _log(fig.update_yaxes, batch, "batch" if where["col"] == 1 else "", **where)
    fig.update_annotations(font_size=13)
    legend = {"orientation": "h", "y": 1 + 0.12 / rows, "yanchor": "bottom"}
    return fig.update_layout(template=TEMPLATE, height=130 + 260 * rows, legend=legend)


def optima(fitted: Hyper) -> go.Figure:
    """Laws and best runs against tokens, a colour for each scale."""
    sweep = fitted.sweep
    axes = [name for name in ("lr", "batch_tokens") if name in sweep.axes]
    fig = make_subplots(1, len(axes), horizontal_spacing=0.11)
    swept = np.flatnonzero(sweep.swept("lr"))
    scales = np.unique(sweep.cells[swept, 0])
    span = np.array([sweep.cells[swept, 1].min() / 1.3, sweep.cells[swept, 1].max() * 1.3])
    for col, name in enumerate(axes, 1):
        place, seen = sweep.axes.index(name), []
        for row, x in enumerate(scales):
            colour = SHAPES[row % len(SHAPES)]
            mine = [n for n in swept if sweep.cells[n, 0] == x]
            best = [sweep.z[sweep.cell == n][np.argmin(sweep.loss[sweep.cell == n]), place] for n in mine]
            line, label = np.exp(fitted.log_best(x, span)[:, place]), short(x).strip()
            common = {"legendgroup": label, "row": 1, "col": col}
            fig.add_scatter(
                x=span, y=line, mode="lines", line={"color": colour}, name=label, showlegend=col == 1, **common
            )
            fig.add_scatter(
                x=sweep.cells[mine, 1], y=np.exp(best), mode="markers", marker={"color": colour, "size": 8}, name=label,
                showlegend=False, **common,
            )  # fmt: skip
            seen += [*line, *np.exp(best)]
        _log(fig.update_xaxes, span, "D, tokens", row=1, col=col)
        _log(fig.update_yaxes, np.array(seen), TITLES[name], row=1, col=col)
    return fig.update_layout(template=TEMPLATE, height=420)


def _contour(fitted: Hyper, at: tuple[float, float], lr: Array, batch: Array, bar: bool) -> go.Contour:
    places = [fitted.sweep.axes.index(name) for name in ("lr", "batch_tokens")]
    rows = np.repeat(fitted.log_best(*at), len(lr) * len(batch), axis=0)
    across, up = np.meshgrid(np.log(lr), np.log(batch))
    rows[:, places[0]], rows[:, places[1]] = across.ravel(), up.ravel()
    regret = fitted.regret(*at, rows).reshape(len(batch), len(lr))
    low, high = np.log10(LEVELS[0]), np.log10(LEVELS[-1])
    return go.Contour(
        x=lr, y=batch, z=np.log10(np.maximum(regret, 1e-4)), customdata=regret, colorscale=SCALE, zmin=low, zmax=high,
        contours={"start": low, "end": high, "size": (high - low) / 14}, line={"width": 0.4}, showscale=bar,
        colorbar={
            "title": "regret, %", "tickvals": np.log10(LEVELS), "ticktext": [f"{level:g}" for level in LEVELS],
            "thickness": 16,
        },
        hovertemplate="lr %{x:.3g}, batch %{y:,.0f}: %{customdata:.2f} %<extra></extra>",
    )  # fmt: skip


def _runs(fig: go.Figure, fitted: Hyper, at: tuple[float, float], legend: bool = True, **where: int) -> None:
    here = _here(fitted, at)
    if not here.any():
        return
    sweep = fitted.sweep
    excess = 100 * np.expm1(sweep.excess[here])
    marker = {
        "size": 8, "color": np.log10(np.maximum(excess, LEVELS[0])), "colorscale": SCALE, "cmin": np.log10(LEVELS[0]),
        "cmax": np.log10(LEVELS[-1]), "line": {"width": 1, "color": "#ffffff"},
    }  # fmt: skip
    lr, batch = (np.exp(sweep.z[here, sweep.axes.index(name)]) for name in ("lr", "batch_tokens"))
    fig.add_scatter(
        x=lr, y=batch, mode="markers", marker=marker, name="runs", showlegend=legend,
        text=[f"{each:.2f} %" for each in excess], hovertemplate="run: %{text}<extra></extra>", **where,
    )  # fmt: skip


def _here(fitted: Hyper, at: tuple[float, float]) -> Any:
    near = np.abs(np.log(fitted.sweep.cells / np.array(at))).max(axis=1) < 0.03
    return near[fitted.sweep.cell]


def _span(fitted: Hyper, at: tuple[float, float]) -> tuple[Array, Array]:
    """The values drawn: the runs there, or five times either way from the optimum where there are none."""
    here = _here(fitted, at)
    best = fitted.log_best(*at)[0]
    spans = []
    for name in ("lr", "batch_tokens"):
        if name not in fitted.sweep.axes:
            spans.append(np.empty(0))
            continue
        place = fitted.sweep.axes.index(name)
        seen = np.append(fitted.sweep.z[here, place], best[place])
        low, high = (seen.min() - 0.25, seen.max() + 0.25) if here.any() else (best[place] - 1.8, best[place] + 1.8)
        spans.append(np.geomspace(np.exp(low), np.exp(high), GRID))
    return spans[0], spans[1]


def _error(best: float, ends: Array) -> dict[str, Any]:
    return {
        "type": "data",
        "array": [max(0.0, ends[1] - best)],
        "arrayminus": [max(0.0, best - ends[0])],
        "color": "#0b1220",
        "thickness": 2,
    }


def _log(update: Any, values: Array, title: str, **where: int) -> None:
    low, high = float(np.min(values)), float(np.max(values))
    ticks = round_ticks(low, high)
    names = [f"{each:.3g}" if each < 1 else tick(each) for each in ticks]
    update(type="log", title=title, tickvals=ticks, ticktext=names, **where)


def _html(fig: go.Figure) -> Html:
    return Html(fig.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))


def _kind(summary: dict[str, Any]) -> str:
    return "good" if all(law["trusted"] for law in summary["laws"].values()) else "wait"


def _sentence(summary: dict[str, Any], where: str) -> str:
    at = summary["at"]
    said = [f"{SPELT[name]} {spelt(band['best'])}" for name, band in at["bands"].items()]
    return f"At {where} and {short(at['tokens'])} tokens: {', '.join(said)}{' tokens' if len(said) > 1 else ''}."


def _cards(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    regret, at = summary["regret"], summary["at"]
    found = [("regret on the sweeps", f"{regret['mean']:.3f} %", f"at worst {regret['worst']:.3f} %, nearest run")]
    for key, said in (("leave_one_out", "each sweep left out"), ("leave_largest_out", "largest scale left out")):
        if regret[key]:
            one = regret[key]["refitted"]
            found.append((f"regret, {said}", f"{one['mean']:.3f} %", f"at worst {one['worst']:.3f} %"))
    for name, band in at["bands"].items():
        ends = " to ".join("any" if band[end] is None else spelt(band[end]) for end in ("low", "high"))
        found.append((f"{SPELT[name]} within {at['within']:g} %", ends, "the others at their best"))
    return found


def _tables(summary: dict[str, Any]) -> list[Html]:
    laws = [
        (
            SPELT.get(name, "tau"), law["formula"], *(
                f"{law[key]:.3f} ({law['interval90'][key][0]:.2f} to {law['interval90'][key][1]:.2f})"
                for key in ("model", "data")
            ), f"{law['at_edge']} of {law['sweeps']}",
        )
        for name, law in summary["laws"].items()
    ]  # fmt: skip
    regrets = [
        (name, one["source"], f"{one['mean']:.3f}", f"{one['worst']:.3f}", f"{one['outside']}")
        for name, one in summary["regret"]["compared"].items()
    ]
    return [
        table(["", "law", "power of scale (90 %)", "power of tokens (90 %)", "sweeps at their edge"], laws, left=2),
        table(["advice", "source", "mean regret, %", "worst, %", "outside the sweep"], regrets, left=2),
        element("p", f"Regret: {summary['regret']['definition']}, in percent.", kind="note"),
    ]
