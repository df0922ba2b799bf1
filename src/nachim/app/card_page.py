"""The card of a data set: one page with where it is from, what became of every document, and samples to look at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from nachim.app.figures import BUDGETS, SHAPES, TEMPLATE
from nachim.app.page import Html, cards, document, element, figure, flat, folded, table
from nachim.spec.disk import write_text

CONFIG = {"displayModeBar": False, "responsive": True}
HELD_OUT = ("validation_bytes", "near_duplicates")
"""Fields of a corpus that say nothing to a pipeline."""
COLUMNS, BINS = 4, 40
"""Histograms side by side, and their bars."""
LABELS = 15
"""Values of a label that are shown; the rest is one bar."""
FLOW = (
    "Text that each stage was given: what stayed, and what went for which reason (megabytes of UTF-8). Click a reason "
    "in the legend to leave it out; the table has the numbers."
)
SCORE = (
    "Scores of the documents that the stage was given (at most 2,000 of them, drawn by hash; upwards, documents), with "
    "those it dropped where it says their score: what a threshold cuts, and what it would cut elsewhere."
)
LABEL = "Documents by what the stage wrote to them."
SAMPLES = "Drawn by a hash of the document, so the same ones whenever it is built."


def write_page(path: Path, told: Mapping[str, Any]) -> None:
    """Write the page of a card to `path`, atomically; `told` is card.json."""
    write_text(path, page_of(told))


def page_of(told: Mapping[str, Any]) -> str:
    """The whole page, as HTML."""
    return document(
        f"nachim: {told['title']}",
        get_plotlyjs(),
        element("header", element("h1", f"nachim data · {told['title']}")),
        element("div", _verdict(told), kind="verdict"),
        cards(_cards(told)),
        element("h2", "Where it is from"),
        _origins(told),
        figure("What became of it", markup(flow(told)), FLOW, ""),
        _stages(told),
        *(part for stage in told["stages"] for part in _stage(stage)),
        *_tokens(told),
        element("h2", "Made by"),
        element("p", element("code", told["command"])),
        table(("what", "value"), list(flat({**told["versions"], "fingerprint": told["fingerprint"]})), left=2),
        folded("The pipeline, as JSON", element("pre", element("code", json.dumps(told["pipeline"], indent=1)))),
        folded("Shards", table(("shard", "SHA-256"), [(one["name"], one["sha256"]) for one in told["shards"]], left=2)),
    )


def flow(told: Mapping[str, Any]) -> go.Figure:
    """One bar a stage: megabytes that stayed and that went, by reason."""
    stages = told["stages"]
    names = [_title(stage) for stage in stages]
    layout = {"template": TEMPLATE, "barmode": "stack", "height": 150 + 55 * len(stages)}
    fig = go.Figure(layout={**layout, "legend": {"orientation": "h", "y": -0.25, "yanchor": "top"}})
    kept = [stage["kept"]["bytes"] / 1e6 for stage in stages]
    fig.add_bar(y=names, x=kept, orientation="h", name="stayed", marker={"color": BUDGETS[1]})
    reasons = list(dict.fromkeys(reason for stage in stages for reason, n in stage["dropped"].items() if n["bytes"]))
    for i, reason in enumerate(reasons):
        lost = [stage["dropped"].get(reason, {"bytes": 0})["bytes"] / 1e6 for stage in stages]
        fig.add_bar(y=names, x=lost, orientation="h", name=reason, marker={"color": SHAPES[i % len(SHAPES)]})
    fig.update_yaxes(autorange="reversed")
    return fig.update_xaxes(title="MB of text")


def histograms(scores: Mapping[str, list[list[float]]]) -> go.Figure:
    """How scores are spread, each in a panel of its own."""
    rows = -(-len(scores) // COLUMNS)
    fig = make_subplots(
        rows, min(COLUMNS, len(scores)), subplot_titles=sorted(scores), vertical_spacing=0.5 / (rows + 1)
    )
    fig.update_layout(
        template=TEMPLATE, height=90 + 190 * rows, showlegend=False, bargap=0.03, margin={"l": 45, "b": 30}
    )
    for place, name in enumerate(sorted(scores)):
        counts, edges = np.histogram([value for _, value in scores[name]], bins=BINS)
        middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        at = {"row": place // COLUMNS + 1, "col": place % COLUMNS + 1}
        fig.add_bar(x=middle, y=counts, width=width, marker={"color": SHAPES[0]}, name=name, **at)
    fig.update_annotations(font={"size": 12})
    return fig.update_yaxes(rangemode="tozero")


def labels(name: str, counts: Mapping[str, int]) -> go.Figure:
    """Documents by label, the most frequent first."""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in most[LABELS:])
    shown = most[:LABELS] + ([(f"{len(most) - LABELS} others", rest)] if rest else [])
    fig = go.Figure(layout={"template": TEMPLATE, "height": 110 + 26 * len(shown)})
    fig.add_bar(y=[value for value, _ in shown], x=[n for _, n in shown], orientation="h", marker={"color": SHAPES[0]})
    fig.update_yaxes(autorange="reversed", type="category")
    return fig.update_xaxes(title=f"documents by {name}")


def markup(fig: go.Figure) -> Html:
    """A figure as part of a page."""
    return Html(fig.to_html(full_html=False, include_plotlyjs=False, config=CONFIG))


def _verdict(told: Mapping[str, Any]) -> str:
    came, kept = told["stages"][0]["came"], told["stages"][-1]["kept"]
    share = kept["bytes"] / max(1, told["stages"][0]["kept"]["bytes"])
    said = f"{kept['rows']:,} of {came['rows']:,} documents stay: {_size(kept['bytes'])}, {share:.1%} of the text."
    return f"{said} Every other one is accounted for."


def _cards(told: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    read, last = told["stages"][0], told["stages"][-1]
    yield "read", f"{read['kept']['rows']:,}", f"documents, {_size(read['kept']['bytes'])}"
    yield "stay", f"{last['kept']['rows']:,}", f"documents, {_size(last['kept']['bytes'])}"
    if told["tokens"]:
        tokens = told["tokens"]
        per = tokens["train"]["bytes"] / max(1, tokens["train"]["tokens"])
        held = f"{tokens['validation']['tokens']:,} held out; {per:.2f} bytes a token"
        yield "tokens to train on", f"{tokens['train']['tokens']:,}", held
    for stage in told["stages"]:
        facts = stage["facts"]
        if "clusters" in facts:
            gone = sum(count["rows"] for count in stage["dropped"].values())
            yield "clusters of duplicates", f"{facts['clusters']:,}", f"{gone:,} documents went for one that stays"
        for one in facts.get("benchmarks", ()):
            items = f"of {one['items']:,} items; {one['rows']:,} documents went"
            yield f"contamination, {one['benchmark']}", f"{len(one['contaminated']):,}", items
    yield "licences", ", ".join(dict.fromkeys(one["licence"] for one in told["origins"])), "as the recipe says"


def _origins(told: Mapping[str, Any]) -> Html:
    heads = ("source", "licence", "corpus", "documents read", "MB", "stay", "MB")
    rows = []
    for one, origin in zip(told["origins"], told["pipeline"]["origins"], strict=True):
        told_of = {key: value for key, value in origin["corpus"].items() if key not in HELD_OUT}
        corpus = ", ".join(f"{key} {value}" if key != "part" else str(value) for key, value in told_of.items())
        counts = [f"{one[when][what]:,}" if what == "rows" else f"{one[when][what] / 1e6:,.2f}"
                  for when in ("read", "kept") for what in ("rows", "bytes")]  # fmt: skip
        rows.append((one["name"], one["licence"], corpus, *counts))
    return table(heads, rows, left=3)


def _stages(told: Mapping[str, Any]) -> Html:
    heads = ("stage", "reason", "documents", "MB", "share of what came")
    rows: list[tuple[object, ...]] = []
    for stage in told["stages"]:
        came = max(1, stage["came"]["rows"])
        for reason, count in {"stayed": stage["kept"], **stage["dropped"]}.items():
            share = f"{count['rows'] / came:.2%}"
            first = _title(stage) if reason == "stayed" else ""
            rows.append((first, reason, f"{count['rows']:,}", f"{count['bytes'] / 1e6:,.2f}", share))
    return table(heads, rows, left=2)


def _stage(stage: Mapping[str, Any]) -> Iterator[Html]:
    """One stage: settings, facts, scores, labels and samples."""
    yield element("h2", _title(stage))
    if stage["stage"]:
        given = {key: value for key, value in stage["stage"].items() if key != "part" and value not in (None, [])}
        yield element("p", ", ".join(f"{key} {value}" for key, value in flat(given)), kind="note")
    yield from _facts(stage["facts"])
    if stage["scores"]:
        yield element("p", SCORE, kind="note")
        yield element("figure", markup(histograms(stage["scores"])))
    if stage["labels"]:
        yield element("p", LABEL, kind="note")
    for name, counts in sorted(stage["labels"].items()):
        yield element("figure", markup(labels(name, counts)))
    yield element("p", SAMPLES, kind="note")
    for reason, samples in stage["samples"].items():
        title = f"Dropped: {reason}" if reason else "Stayed"
        yield folded(f"{title} ({len(samples)} samples)", Html("".join(_sample(*sample) for sample in samples)))


def _sample(draw: int, name: object, source: str, excerpt: str, about: str) -> Html:
    head = " · ".join(str(each) for each in (source, name, about) if each)
    text = element("pre", element("code", excerpt)) if excerpt else ""
    return element("div", element("p", element("b", head)), text)


def _facts(facts: Mapping[str, Any]) -> Iterator[Html]:
    if facts.get("largest"):
        rows = [(one["keeper"], f"{one['rows']:,}", one["excerpt"][:120]) for one in facts["largest"]]
        sizes = [(size, f"{count:,}") for size, count in facts["clusters_by_size"].items()]
        yield folded("The largest clusters of duplicates", table(("who stays", "documents", "begins"), rows, left=3))
        yield folded("Clusters by size", table(("documents", "clusters"), sizes, left=0))
    for one in facts.get("benchmarks", ()):
        said = (
            f"{one['benchmark']}: {len(one['contaminated']):,} of {one['items']:,} items stand in the text "
            f"({one['rate']:.2%} of those long enough to be judged; {one['too_short']:,} are not)."
        )
        yield element("p", said)
        if one["contaminated"]:
            most = sorted(one["contaminated"].items(), key=lambda item: -item[1])
            yield folded("Which", table(("item", "share of its n-grams"), [(n, f"{s:.1%}") for n, s in most]))
    known = ("largest", "clusters", "clusters_by_size", "benchmarks")
    others = list(flat({key: value for key, value in facts.items() if key not in known}))
    if others:
        yield table(("what", "value"), others, left=2)


def _tokens(told: Mapping[str, Any]) -> Iterator[Html]:
    tokens = told["tokens"]
    if not tokens:
        return
    yield element("h2", "Tokens")
    rows = [
        (name, f"{tokens[name]['documents']:,}", f"{tokens[name]['bytes']:,}", f"{tokens[name]['tokens']:,}")
        for name in ("train", "validation")
    ]
    yield table(("split", "documents", "bytes", "tokens"), rows)
    left = [f"{tokens[f'{kind}_duplicates']['documents']:,} {kind} duplicates" for kind in ("exact", "near")]
    near = f"{tokens['leakage']:.2%} of the validation bytes stand in documents near to train."
    yield element("p", f"Left out before the split: {' and '.join(left)}. {near}", kind="note")
    packed = tokens["packing"]
    said = (
        f"An epoch is {packed['sequences']:,} sequences of {tokens['seq_len']:,} tokens; {packed['documents_cut']:,} "
        f"of {packed['documents']:,} documents are cut, {packed['padding_tokens']:,} tokens are filling, "
        f"{packed['tokens_left_out']:,} left out."
    )
    yield element("p", said, kind="note")
    yield element("p", "Fingerprint: ", element("code", tokens["fingerprint"]), kind="note")


def _title(stage: Mapping[str, Any]) -> str:
    return str(stage["stage"]["part"]) if stage["stage"] else "read"


def _size(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"
