"""The page of a collapse study: every measure by generation, one curve an arm, the range of its seeds as a band."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from nachim.app.collapse import COLUMNS, cell, reach, sentences
from nachim.app.figures import GRID, LAW, SHAPES, TEMPLATE
from nachim.app.page import Html, bullets, cards, document, element, figure, table
from nachim.spec.disk import write_text

CONFIG = {"displayModeBar": False, "responsive": True}
ACROSS, HIGH = 2, 290
HUMAN = frozenset({"distinct.2", "distinct.4", "tail.1", "tail.2", "unseen.2", "entropy.1"})
"""Measures that human text has itself: a grey line. Its tail and its unseen pairs are those of held-out text."""
CAPTION = (
    "Generation 0 learnt human text; each later one what the ones before it wrote. A line is the mean of the seeds, "
    "its band their range. Grey is human text: distinct n-grams and entropy of as many tokens of it, tails of its "
    "held-out part. Rare tokens and pairs are the rarest that have a tenth of human text together; pairs not human are "
    "those that the human text has not. Own entropy is that of the model's distribution, nat/token, on what it wrote."
)


def write_page(path: Path, found: dict[str, Any]) -> None:
    """Write the page of a study's summary to `path`, atomically."""
    rule, *lines = sentences(found)
    any_collapse = any(one["generation"] is not None for arm in found["arms"] for one in arm["collapse"])
    drawn = Html(curves(found).to_html(full_html=False, include_plotlyjs=False, config=CONFIG))
    human = found["human"]
    page = document(
        "nachim: models that learn from models",
        get_plotlyjs(),
        element("header", element("h1", "nachim collapse · models that learn from models")),
        *(element("div", line, kind=f"verdict {'bad' if ': collapse' in line else 'good'}") for line in lines),
        bullets("What is called collapse", [rule], "gaps bad" if any_collapse else "gaps"),
        cards(
            [
                ("human text", f"{human['tokens']:,}", "tokens, and as many of each generation"),
                ("seeds", str(len(found["seeds"])), "weights, order and draws anew"),
                ("its own distinct-2", f"{human['distinct']['2']:.3f}", "of the same number of tokens"),
                ("rare tokens in held-out text", f"{human['tail']['1']:.3f}", "of its tokens; 0.1 of what was learnt"),
            ]
        ),
        figure("By generation", drawn, CAPTION, ""),
        element("h2", "Numbers"),
        table(("arm", "generation", *(title for title, _ in COLUMNS.values())), _rows(found), left=1),
    )
    write_text(path, page)


def curves(found: dict[str, Any]) -> go.Figure:
    """A panel for each measure."""
    titles = [title for title, _ in COLUMNS.values()]
    down = -(-len(titles) // ACROSS)
    fig = make_subplots(down, ACROSS, subplot_titles=titles, vertical_spacing=0.32 / down, horizontal_spacing=0.09)
    for place, path in enumerate(COLUMNS):
        where = {"row": place // ACROSS + 1, "col": place % ACROSS + 1}
        for number, arm in enumerate(found["arms"]):
            _arm(fig, arm, path, SHAPES[number % len(SHAPES)], place == 0, where)
        if path in HUMAN:
            fig.add_hline(y=reach(found["human"], path), line={"color": LAW, "width": 2, "dash": "dash"}, **where)
    fig.update_layout(template=TEMPLATE, height=HIGH * down + 60, margin={"l": 50, "r": 10, "t": 70, "b": 40})
    fig.update_layout(legend={"orientation": "h", "y": 1.03, "yanchor": "bottom"})
    fig.update_xaxes(dtick=1, title=None)
    fig.update_xaxes(title="generation", row=down)
    return fig.update_annotations(font_size=13).update_yaxes(gridcolor=GRID)


def _arm(fig: go.Figure, arm: dict[str, Any], path: str, colour: str, legend: bool, where: dict[str, int]) -> None:
    each = [[reach(one, path) for one in measured] for measured in arm["generations"]]
    x, low, high = list(range(len(each))), [min(values) for values in each], [max(values) for values in each]
    red, green, blue = hex_to_rgb(colour)
    fig.add_scatter(
        x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", mode="lines", line={"width": 0}, showlegend=False,
        fillcolor=f"rgba({red},{green},{blue},0.18)", hoverinfo="skip", legendgroup=arm["arm"], **where,
    )  # fmt: skip
    fig.add_scatter(
        x=x, y=[mean(values) for values in each], mode="lines+markers", line={"color": colour, "width": 2},
        name=arm["arm"], legendgroup=arm["arm"], showlegend=legend, hovertemplate="%{y:.4f}", **where,
    )  # fmt: skip


def _rows(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            arm["arm"],
            str(number),
            *(cell([reach(one, p) for one in measured], form) for p, (_, form) in COLUMNS.items()),
        ]
        for arm in found["arms"]
        for number, measured in enumerate(arm["generations"])
    ]
