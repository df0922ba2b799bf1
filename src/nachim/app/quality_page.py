"""The page of scores: a histogram of each with its limits, and what every limit would drop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from nachim.app.figures import FORECAST, GRID, LAW, TEMPLATE
from nachim.app.page import Html, bullets, cards, document, element, figure, table
from nachim.spec.disk import write_text

CONFIG = {"displayModeBar": False, "responsive": True}
ACROSS = 3
BINS = 40
HIGH = 230
"""Pixels of a row of histograms."""
CAPTION = (
    "Each panel is one score over the records (of many records, 2,000 drawn by their content's hash); its last bar "
    "holds everything beyond. Dashed lines are the limits: left of a least or right of a most is out of bounds. A "
    "limit that cuts into the bulk of your text was set for another kind of text."
)


def write_page(path: Path, found: dict[str, Any]) -> None:
    """Write the page of what `nachim data score` found to `path`, atomically."""
    told = found["records"], found["in_bounds"]
    drawn = Html(histograms(found["scores"]).to_html(full_html=False, include_plotlyjs=False, config=CONFIG))
    rows = [
        (name, one["source"], _limits(one), f"{one['out']:,}", f"{one['out'] / told[0]:.2%}", *_quantiles(one))
        for name, one in found["scores"].items()
    ]
    page = document(
        f"nachim: scores of {found['file']}",
        get_plotlyjs(),
        element("header", element("h1", f"nachim data score · {found['file']}")),
        element("div", f"{told[1]:,} of {told[0]:,} records keep every limit.", kind="verdict"),
        bullets("What was left out", found["notes"], "gaps"),
        cards([(name, f"{count:,}", "records") for name, count in list(found["labels"].items())[:12]]),
        figure("Scores", drawn, CAPTION, ""),
        element("h2", "Numbers"),
        table(("score", "of", "limits", "out", "share", "1 %", "median", "99 %"), rows, left=3),
        element("h2", "What goes first"),
        table(("limit", "records"), [(name, f"{count:,}") for name, count in found["dropped"].items()]),
    )
    write_text(path, page)


def histograms(scores: dict[str, dict[str, Any]]) -> go.Figure:
    """One panel for each score."""
    down = -(-len(scores) // ACROSS)
    fig = make_subplots(down, ACROSS, subplot_titles=list(scores), vertical_spacing=min(0.3, 70 / (HIGH * down)))
    for place, one in enumerate(scores.values()):
        row, col = place // ACROSS + 1, place % ACROSS + 1
        counts, edges = _bars(one["values"], [end for end in (one["least"], one["most"]) if end is not None])
        fig.add_bar(
            x=(edges[1:] + edges[:-1]) / 2, y=counts, width=np.diff(edges), marker={"color": LAW, "line": {"width": 0}},
            hovertemplate="%{x:.3g}: %{y}<extra></extra>", row=row, col=col,
        )  # fmt: skip
        for end in (one["least"], one["most"]):
            if end is not None and edges[0] <= end <= edges[-1]:
                fig.add_vline(x=end, line={"color": FORECAST, "width": 2, "dash": "dash"}, row=row, col=col)
    fig.update_layout(template=TEMPLATE, height=HIGH * down + 60, showlegend=False, bargap=0)
    fig.update_layout(margin={"l": 40, "r": 10, "t": 40, "b": 30})
    fig.update_annotations(font_size=13)
    return fig.update_yaxes(showticklabels=False, gridcolor=GRID, title=None)


def _bars(values: Sequence[float], ends: Sequence[float]) -> tuple[Any, Any]:
    """Counts and edges from the least to the 99.5 % quantile, and to the limits that lie near."""
    low, high = float(np.min(values)), float(np.quantile(values, 0.995))
    near = [end for end in ends if low - (high - low) <= end <= 2 * high - low or high == low]
    low, high = min([low, *near]), max([high, *near])
    high = high if high > low else low + 1
    return np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high + (high - low) / BINS))


def _limits(one: dict[str, Any]) -> str:
    low, high = one["least"], one["most"]
    if low is None and high is None:
        return "none"
    return " and ".join(f"{what} {end:g}" for what, end in (("at least", low), ("at most", high)) if end is not None)


def _quantiles(one: dict[str, Any]) -> list[str]:
    return [f"{np.quantile(one['values'], q):.4g}" for q in (0.01, 0.5, 0.99)]
