"""The page of a vocabulary study: bits a byte at equal compute over the size, and what each size costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from nachim.app.data_vocab import COLUMNS, MEASURED, cells, measured, sentences
from nachim.app.figures import BAND, LAW, SHAPES, TEMPLATE, log_axis
from nachim.app.page import Html, bullets, cards, document, element, figure, table
from nachim.spec.disk import write_text

CONFIG = {"displayModeBar": False, "responsive": True}
SHARES = (("of the parameters", "params_share", SHAPES[0]), ("of the FLOPs", "flops_share", SHAPES[3]))
CAPTION = (
    "Every run has the same compute, its head included, so a larger vocabulary trains on fewer tokens; all are judged "
    "on the same held-out text. Bars: 95 % interval of the difference from the best size. Band: where a parabola "
    "through the sizes near the best has its bottom, 90 %."
)
COSTS = "Shares of embedding and head in the parameters and in the training FLOPs of the run's body; bytes a token."


def write_page(path: Path, found: dict[str, Any]) -> None:
    """Write the page of a study's summary to `path`, atomically."""
    said, trained = sentences(found), "best" in found
    best = next((one for one in found["sizes"] if one["vocab_size"] == found.get("best")), None)
    entries = [("compute of each run", f"{found['flops']:.3g}", "FLOP, head included")]
    if best is not None:
        entries += [
            ("bits a byte", f"{best['mean']:.4f}", f"at {best['vocab_size']:,} tokens"),
            ("bytes a token", f"{best['bytes_per_token']:.2f}", "of the training text"),
            ("vocabulary", f"{best['params_share']:.0%}", "of the parameters"),
        ]
    page = document(
        "nachim: how large a vocabulary?",
        get_plotlyjs(),
        element("header", element("h1", "nachim data vocab · how large a vocabulary?")),
        element("div", said[0], kind="verdict" + (" good" if trained and found["optimum"] else " wait")),
        bullets("Also", said[1:], "gaps"),
        cards(entries),
        figure("Bits a byte at equal compute", _markup(loss(found)) if trained else None, CAPTION, said[0]),
        figure("What a size costs, and saves", _markup(costs(found)), COSTS, ""),
        element("h2", "Numbers"),
        table((*COLUMNS, *(MEASURED if trained else ())), _rows(found, trained), left=0),
    )
    write_text(path, page)


def loss(found: dict[str, Any]) -> go.Figure:
    """Held-out bits a byte over the size: every run, the means, and the optimum."""
    sizes, at = found["sizes"], [one["vocab_size"] for one in found["sizes"]]
    fig = go.Figure()
    if found["optimum"]:
        fig.add_vrect(x0=found["optimum"]["low"], x1=found["optimum"]["high"], fillcolor=BAND, line_width=0)
    for seed in range(found["seeds"]):
        marker = {"color": SHAPES[1], "size": 7, "symbol": "circle-open"}
        up = [one["bpb"][seed] for one in sizes]
        fig.add_scatter(x=at, y=up, mode="markers", marker=marker, name="a run", showlegend=not seed)
    reach = None
    if found["noise"] is not None:
        best = min(one["mean"] for one in sizes)
        reach = {"type": "data", "array": [best * (one["high"] - one["over_best"]) for one in sizes], "thickness": 1.5}
    line = {"color": SHAPES[0], "width": 2}
    fig.add_scatter(x=at, y=[one["mean"] for one in sizes], error_y=reach, mode="lines+markers", line=line, name="mean")
    fig.update_layout(template=TEMPLATE, yaxis_title="held-out bits a byte", legend={"orientation": "h", "y": 1.08})
    log_axis(fig.update_xaxes, at, "size of the vocabulary")
    return fig


def costs(found: dict[str, Any]) -> go.Figure:
    """Shares of parameters and FLOPs over the size, and bytes a token."""
    at = [one["vocab_size"] for one in found["sizes"]]
    fig = make_subplots(1, 2, horizontal_spacing=0.12)
    for name, key, colour in SHARES:
        up = [100 * one[key] for one in found["sizes"]]
        fig.add_scatter(x=at, y=up, mode="lines+markers", line={"color": colour}, name=name, row=1, col=1)
    up = [one["bytes_per_token"] for one in found["sizes"]]
    fig.add_scatter(x=at, y=up, mode="lines+markers", line={"color": LAW}, name="bytes a token", row=1, col=2)
    fig.update_layout(template=TEMPLATE, height=360, legend={"orientation": "h", "y": 1.12})
    for col, title in ((1, "embedding and head, %"), (2, "bytes a token")):
        log_axis(fig.update_xaxes, at, "size of the vocabulary", row=1, col=col)
        fig.update_yaxes(title=title, rangemode="tozero", row=1, col=col)
    return fig


def _rows(found: dict[str, Any], trained: bool) -> list[list[str]]:
    return [[*cells(one), *(measured(one) if trained else ())] for one in found["sizes"]]


def _markup(fig: go.Figure) -> Html:
    return Html(fig.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))
