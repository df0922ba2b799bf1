"""The page of a comparison: multiplier against compute with its band, the pairs behind it, and the numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.offline import get_plotlyjs

from nachim.app.compare import counted, verdict, verdict_kind
from nachim.app.figures import SHAPES, TEMPLATE, log_axis, round_ticks
from nachim.app.page import Html, bullets, cards, document, element, figure, power, table
from nachim.law.compare import Worth
from nachim.spec.disk import write_text

CONFIG = {"displayModeBar": False, "responsive": True}
CAPTION = (
    "How many times more compute the baseline needs to reach the idea's loss. The line is the fit over both ladders, "
    "the band its 95 % interval at each compute; a point is one pair of runs, turned into a multiplier by the law's "
    "slope. A band that crosses 1 leaves open whether the idea helps there."
)


def write_page(path: Path, base: Path, found: Mapping[str, Worth]) -> None:
    """Write the page of a comparison to `path`, atomically."""
    lines = [verdict(name, worth) for name, worth in found.items()]
    notes = [f"{name}: {note}." for name, worth in found.items() for note in worth.notes]
    drawn = Html(multipliers(found).to_html(full_html=False, include_plotlyjs=False, config=CONFIG))
    page = document(
        f"nachim: worth against {base.name}",
        get_plotlyjs(),
        element("header", element("h1", f"nachim compare · against {base.name}")),
        *(
            element("div", line, kind=f"verdict {verdict_kind(w)}")
            for line, w in zip(lines, found.values(), strict=True)
        ),
        bullets("What to beware of", notes, "gaps"),
        cards(_cards(next(iter(found.values())))) if len(found) == 1 else "",
        figure("Multiplier of compute", drawn, CAPTION, ""),
        element("h2", "Numbers"),
        *_tables(found),
    )
    write_text(path, page)


def multipliers(found: Mapping[str, Worth], flops: Sequence[float] = (), values: Sequence[float] = ()) -> go.Figure:
    """Multiplier against compute: a line, its 95 % band and the pairs of each idea.

    The axes have room for `flops` and the multipliers `values` too.
    """
    fig = go.Figure(layout={"template": TEMPLATE, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}})
    seen = [1.0, *values]
    for place, (name, worth) in enumerate(found.items()):
        colour, label = SHAPES[place % len(SHAPES)], html.escape(name)
        across = np.geomspace(*worth.span, 40) if worth.trend is not None else np.array(worth.span)
        value, low, high = worth.at(across)
        seen += [low.min(), high.max(), *np.quantile(worth.points[:, 1], [0.02, 0.98] if len(worth.points) else [])]
        red, green, blue = hex_to_rgb(colour)
        common = {"legendgroup": label, "hoverinfo": "skip"}
        fig.add_scatter(
            x=np.concatenate([across, across[::-1]]), y=np.concatenate([high, low[::-1]]), fill="toself", mode="lines",
            fillcolor=f"rgba({red},{green},{blue},0.18)", line={"width": 0}, name=f"{label}, 95 %", **common,
        )  # fmt: skip
        fig.add_scatter(x=across, y=value, mode="lines", line={"color": colour, "width": 2}, name=label, **common)
        fig.add_scatter(
            x=worth.points[:, 0], y=worth.points[:, 1], mode="markers", marker={"color": colour, "size": 7},
            name=f"{label}, pairs", legendgroup=label, hovertemplate="%{x:.3g} FLOP: %{y:.3f}<extra></extra>",
        )  # fmt: skip
    fig.add_hline(y=1.0, line={"color": "#7b8494", "width": 1, "dash": "dash"})
    spans = [*flops, *(end for worth in found.values() for end in worth.span)]
    log_axis(fig.update_xaxes, round_ticks(min(spans), max(spans)), "training compute of the idea's run, FLOP")
    log_axis(fig.update_yaxes, _around_one(min(seen), max(seen)), "multiplier of compute")
    return fig.update_yaxes(range=np.log10([min(seen) / 1.03, max(seen) * 1.03]).tolist())


def _around_one(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`, with 1, which lies between, among them."""
    if high > 10 * low:
        return round_ticks(low, high)
    step = next(size for size in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / size <= 10)
    return [round(1 + n * step, 2) for n in range(-10, 11) if low <= 1 + n * step <= high]


def _cards(worth: Worth) -> list[tuple[str, str, str]]:
    interval = f"95 % interval {worth.low:.3f} to {worth.high:.3f}"
    found = [("multiplier of compute", f"{worth.multiplier:.3f}", f"{interval}, at {power(worth.at_flops)} FLOP")]
    found.append(("p, were it worth nothing", f"{worth.p:.2g}", counted(worth)))
    if worth.trend is not None and worth.trend_interval is not None:
        low, high = worth.trend_interval
        found.append(("trend", f"{worth.trend:+.3f}", f"log multiplier over log C, {low:+.3f} to {high:+.3f}"))
    found.append(("noise of a difference", f"{100 * worth.noise:.2f} %", "of the loss"))
    return found


def _tables(found: Mapping[str, Worth]) -> list[Html]:
    rows = []
    for name, worth in found.items():
        for flops, value, low, high in zip(worth.scales, *worth.at(worth.scales), strict=True):
            rows.append([name, power(flops), f"{value:.3f}", f"{low:.3f} to {high:.3f}"])
    whole = []
    for name, worth in found.items():
        numbers = (
            f"{worth.multiplier:.3f}",
            f"{worth.low:.3f} to {worth.high:.3f}",
            f"{worth.p:.3g}",
            f"{worth.q:.3g}",
        )
        whole.append([name, *numbers, worth.pairs, worth.unpaired, worth.law])
    return [
        table(("idea", "multiplier", "95 % interval", "p", "q", "pairs", "unpaired", "law"), whole),
        table(("idea", "C, FLOP", "multiplier", "95 % interval"), rows),
    ]
