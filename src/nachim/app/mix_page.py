"""Pages of mixtures: what a law makes of the shares, and weights that were found while a model trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from nachim.app.figures import BAND, DEPTH, FORECAST, LAW, MEASURED, SHAPES, TEMPLATE
from nachim.app.mix_law import times, verdict_line
from nachim.app.page import Html, bullets, cards, document, element, figure, table
from nachim.law.forms import Array
from nachim.law.mixture import Best, MixtureFit
from nachim.spec.disk import write_text

CONFIG = {"displayModeBar": False, "responsive": True}
PAIR = (
    "Each line is the law of one held-out text at the largest scale, the thick one the weighted sum; points are the "
    "runs at that scale. The band holds 90 % of single runs at the sum; the square is the best share with its interval."
)
TRIANGLE = (
    "The weighted loss by the law, darker is lower; a corner is one corpus alone. Circles are the mixtures of the "
    "runs, the square is the best of them by the law."
)
MANY = "The best share of each corpus with its 90 % interval over refits; ticks are the shares of the runs."
HELD_OUT = (
    "Each mixture as the law of the other mixtures forecasts it, for each held-out text. What lies off the diagonal is "
    "what the law does not know."
)
COURSE = (
    "Left, the weights by which the proxy read each stretch; right, how far it was behind the reference at the end of "
    "each, on text from the end of each corpus. Dashed is the average over stretches: the mixture to use."
)


def write_law(path: Path, title: str, law: MixtureFit, target: Array, best: Best, told: dict[str, Any]) -> None:
    """Write the page of a mixture law to `path`, atomically; `told` is what `nachim mix --json` says."""
    drawn, said = surface(law, target, best)
    loss, error = told["loss"], told["held_out_error"]["weighted"]
    verdict = told.get("verdict")
    head = ", ".join(f"{name} {share:.1%}" for name, share in best.shares.items())
    inside = f"90 % of runs {loss['low']:.4f} to {loss['high']:.4f}"
    facts = [
        ("expected loss at the best weights", f"{loss['value']:.4f}", inside),
        (
            "held-out error",
            "none" if error is None else f"{error:.2f} %",
            "of the weighted loss, mixtures left out in turn",
        ),
        ("runs", f"{told['runs']}", f"of {told['mixtures']} mixtures"),
    ]
    if told["worth"]:
        one = told["worth"]
        ends = f"{times(one['low'])} to {times(one['high'])}, over the best mixture trained"
        facts.append(("worth, times the tokens", times(one["multiplier"]), ends))
    parts = [
        element("div", f"Least loss at {head}.", kind="verdict"),
        element("p", verdict_line(told["sealed"], verdict), kind="note") if verdict else "",
        bullets("What to beware of", told["doubts"], "gaps"),
        cards(facts),
        figure("Loss over the mixture", _markup(drawn), said, ""),
        figure("Was it right before?", _markup(held_out(law)), HELD_OUT, ""),
        *(_ahead(told["sealed"], verdict) if verdict else ()),
        element("h2", "Coefficients"),
        table(("text", "coefficient", "value", "90 % interval"), _coefficients(told), left=2),
    ]
    write_text(path, _page(f"nachim mix · {title}", parts))


def write_online(path: Path, title: str, found: dict[str, Any]) -> None:
    """Write the page of weights found while a model trained to `path`, atomically."""
    head = ", ".join(f"{name} {share:.1%}" for name, share in found["weights"].items())
    rows = [
        [
            f"{one['tokens']:,}",
            *(f"{one['weights'][name]:.3f} / {one['excess'][name]:+.3f}" for name in found["weights"]),
        ]
        for one in found["stretches"]
    ]
    parts = [
        element("div", f"The mixture to use: {head}.", kind="verdict"),
        figure("Weights over the run", _markup(course(found)), COURSE, ""),
        element("h2", "Stretches"),
        table(("until token", *(f"{name}: weight / excess" for name in found["weights"])), rows, left=0),
    ]
    write_text(path, _page(f"nachim mix online · {title}", parts))


def surface(law: MixtureFit, target: Array, best: Best) -> tuple[go.Figure, str]:
    """The law over the simplex, and how it is read: a curve of two corpora, a triangle of three, intervals of more."""
    corpora = law.law.corpora
    if corpora == 2:
        return _curve(law, target, best), PAIR
    return (_triangle(law, target, best), TRIANGLE) if corpora == 3 else (_intervals(law, best), MANY)


def _curve(law: MixtureFit, target: Array, best: Best) -> go.Figure:
    fig = go.Figure(layout={"template": TEMPLATE, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}})
    first, runs = law.runs.corpora[0], law.runs
    share = np.linspace(0.0, 1.0, 101)
    both = np.stack([share, 1 - share], axis=1)
    losses, longest = law.losses(both), _longest(law)
    grid = np.linspace(runs.shares[:, 0].min(), runs.shares[:, 0].max(), 25)
    ends = np.array([law.forecast(np.array([one, 1 - one]), target).loss for one in grid])
    fig.add_scatter(
        x=np.concatenate([grid, grid[::-1]]), y=np.concatenate([ends[:, 2], ends[::-1, 1]]), fill="toself",
        fillcolor=BAND, mode="lines", line={"width": 0}, name="90 % of runs", hoverinfo="skip",
    )  # fmt: skip
    fig.add_scatter(x=share, y=target @ losses, mode="lines", line={"color": LAW, "width": 3}, name="weighted sum")
    for name, row, seen, colour in zip(runs.texts, losses, runs.losses.T, _colours(len(losses)), strict=True):
        fig.add_scatter(x=share, y=row, mode="lines", line={"color": colour}, name=name, legendgroup=name)
        dots = {"color": colour, "size": 8}
        fig.add_scatter(
            x=runs.shares[longest, 0], y=seen[longest], mode="markers", marker=dots, name=f"{name}, runs",
            legendgroup=name, showlegend=False,
        )  # fmt: skip
    low, high = best.interval90[first]
    at = best.shares[first]
    fig.add_scatter(
        x=[at], y=[best.forecast.loss[0]], mode="markers", marker={"color": FORECAST, "size": 11, "symbol": "square"},
        error_x={"type": "data", "array": [high - at], "arrayminus": [at - low], "thickness": 2}, name="best share",
    )  # fmt: skip
    return fig.update_xaxes(title=f"share of {first}").update_yaxes(title="loss on held-out text")


def _triangle(law: MixtureFit, target: Array, best: Best, steps: int = 40) -> go.Figure:
    points = np.array([(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]) / steps
    loss = target @ law.losses(points)
    fig = go.Figure(layout={"template": TEMPLATE, "height": 560})
    names, runs = law.runs.corpora, law.runs.shares

    def place(shares: Array) -> dict[str, Array]:
        return dict(zip("abc", shares.T, strict=True))

    shade = {"color": loss, "colorscale": DEPTH, "size": 9, "symbol": "hexagon2", "colorbar": {"title": "loss"}}
    fig.add_scatterternary(
        **place(points), mode="markers", marker=shade, name="law", showlegend=False,
        text=[f"{one:.4f}" for one in loss], hovertemplate="%{a:.2f}, %{b:.2f}, %{c:.2f}: %{text}<extra></extra>",
    )  # fmt: skip
    ring = {"color": SHAPES[3], "size": 9, "symbol": "circle-open", "line": {"width": 2}}
    fig.add_scatterternary(**place(runs), mode="markers", marker=ring, name="runs")
    square = {"color": FORECAST, "size": 13, "symbol": "square", "line": {"color": "#ffffff", "width": 1}}
    fig.add_scatterternary(**place(best.point[None]), mode="markers", marker=square, name="best")
    axes = {f"{axis}axis": {"title": name, "tickformat": ".0%"} for axis, name in zip("abc", names, strict=True)}
    return fig.update_layout(ternary={**axes, "bgcolor": "rgba(0,0,0,0)"}, legend={"orientation": "h", "y": -0.08})


def _intervals(law: MixtureFit, best: Best) -> go.Figure:
    fig = go.Figure(layout={"template": TEMPLATE, "height": 120 + 44 * law.law.corpora})
    names = list(best.shares)
    for place, name in enumerate(names):
        tick = {"color": LAW, "size": 9, "symbol": "line-ns-open"}
        seen = np.unique(law.runs.shares[:, place])
        fig.add_scatter(
            x=seen, y=[name] * len(seen), mode="markers", marker=tick, name="runs", showlegend=not place, hoverinfo="x"
        )
    middle = best.point
    ends = np.array([best.interval90[name] for name in names])
    reach = {"type": "data", "array": ends[:, 1] - middle, "arrayminus": middle - ends[:, 0], "thickness": 2}
    square = {"color": FORECAST, "size": 11, "symbol": "square"}
    fig.add_scatter(x=middle, y=names, mode="markers", marker=square, error_x=reach, name="best")
    return fig.update_xaxes(title="share", range=[0, None], tickformat=".0%").update_yaxes(autorange="reversed")


def held_out(law: MixtureFit) -> go.Figure:
    """Measured losses against those that the law of the other mixtures forecasts."""
    fig = go.Figure(layout={"template": TEMPLATE, "height": 420})
    forecast = law.runs.losses * np.exp(-law.held_out.T)
    known = np.isfinite(forecast)
    ends = [float(np.nanmin(forecast)), float(np.nanmax(forecast))] if known.any() else [0.0, 1.0]
    line = {"color": LAW, "dash": "dash"}
    fig.add_scatter(x=ends, y=ends, mode="lines", line=line, name="as forecast", hoverinfo="skip")
    for place, (name, colour) in enumerate(zip(law.runs.texts, _colours(len(law.runs.texts)), strict=True)):
        use, marker = known[:, place], {"color": colour, "size": 8}
        at = {"x": forecast[use, place], "y": law.runs.losses[use, place]}
        fig.add_scatter(**at, mode="markers", marker=marker, name=name)
    return fig.update_xaxes(title="loss forecast from the other mixtures").update_yaxes(title="loss measured")


def course(found: dict[str, Any]) -> go.Figure:
    """Weights and excess of each corpus over the stretches of a proxy."""
    fig = make_subplots(1, 2, subplot_titles=["weight", "excess over the reference, nat/token"], horizontal_spacing=0.1)
    fig.update_layout(template=TEMPLATE, height=400, legend={"orientation": "h", "y": -0.25})
    ends = np.array([one["tokens"] for one in found["stretches"]])
    begins = np.concatenate([[0], ends[:-1]])
    for name, colour in zip(found["weights"], _colours(len(found["weights"])), strict=True):
        weights = [one["weights"][name] for one in found["stretches"]]
        excess = [one["excess"][name] for one in found["stretches"]]
        common = {"mode": "lines", "legendgroup": name, "name": name}
        held = {"x": np.stack([begins, ends], 1).ravel(), "y": np.repeat(weights, 2)}
        fig.add_scatter(**held, line={"color": colour}, **common, row=1, col=1)
        average = [found["weights"][name]] * 2
        dashes = {"color": colour, "dash": "dash", "width": 1.5}
        fig.add_scatter(x=[0, ends[-1]], y=average, line=dashes, **{**common, "showlegend": False}, row=1, col=1)
        dots = {"color": colour, "size": 7}
        fig.add_scatter(
            x=ends, y=excess, line={"color": colour}, marker=dots, **{**common, "mode": "lines+markers"},
            showlegend=False, row=1, col=2,
        )  # fmt: skip
    fig.add_hline(y=0, line={"color": LAW, "width": 1}, row=1, col=2)
    return fig.update_xaxes(title="training tokens of the proxy").update_yaxes(rangemode="tozero", row=1, col=1)


def _ahead(sealed: dict[str, Any], verdict: dict[str, Any]) -> list[object]:
    """The forecast of longer runs and what they measured: a figure and a table."""
    fig = go.Figure(layout={"template": TEMPLATE, "height": 360})
    names = [f"{row['name']}, {row['tokens'] / 1e6:.3g} M tokens" for row in verdict["runs"]]
    middle, low, high = np.array([row["loss"] for row in sealed["runs"]]).T
    reach = {"type": "data", "array": high - middle, "arrayminus": middle - low, "thickness": 2}
    square, star = (
        {"color": colour, "size": 12, "symbol": kind} for colour, kind in ((FORECAST, "square"), (MEASURED, "star"))
    )
    fig.add_scatter(x=names, y=middle, error_y=reach, mode="markers", marker=square, name="sealed forecast, 90 %")
    fig.add_scatter(
        x=names, y=[row["measured"] for row in verdict["runs"]], mode="markers", marker=star, name="measured"
    )
    fig.update_yaxes(title="weighted loss")
    rows = [
        [name, f"{row['loss'][0]:.4f}", f"{row['loss'][1]:.4f} to {row['loss'][2]:.4f}", f"{one['measured']:.4f}",
         f"{one['error_percent']:+.2f} %", "inside" if one["inside"] else "outside"]
        for name, row, one in zip(names, sealed["runs"], verdict["runs"], strict=True)
    ]  # fmt: skip
    heads = ("weights", "forecast", "90 %", "measured", "error", "")
    said = f"Sealed {sealed['sealed_at']}, before these runs began (SHA-256 {sealed['sha256'][:16]}…)."
    return [figure("The forecast, and what came", _markup(fig), said, ""), table(heads, rows)]


def _coefficients(told: dict[str, Any]) -> list[list[object]]:
    return [
        [text, name, f"{one['value']:.4g}", f"{one['low']:.4g} to {one['high']:.4g}"]
        for text, each in told["coefficients"].items()
        for name, one in each.items()
    ]


def _longest(law: MixtureFit) -> Array:
    """The rows at the largest scale."""
    rows = np.ones(len(law.runs), dtype=bool)
    for name, most in law.largest.items():
        rows &= law.runs.scales[name] > 0.99 * most
    return rows


def _colours(count: int) -> list[str]:
    return list(sample_colorscale(SHAPES, list(np.linspace(0, 1, count)) if count > 1 else [0.0]))


def _page(title: str, parts: list[object]) -> str:
    return document(title, get_plotlyjs(), element("header", element("h1", title)), *parts)


def _markup(fig: go.Figure) -> Html:
    return Html(fig.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))
