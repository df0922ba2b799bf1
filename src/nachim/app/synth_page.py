"""The page of a synthesis: what was kept and dropped, every score with its limit, samples, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from nachim.app.page import Html, bullets, cards, document, element, figure, table
from nachim.app.quality_page import CONFIG, histograms
from nachim.data.ledger import Ledger
from nachim.spec.disk import write_text

SCORES = {
    "rouge_l": ("ROUGE-L to the nearest instruction", "most"),
    "distance": ("distance to the nearest vector", "least"),
    "overlap": ("Jaccard of shingles with the nearest task", "most"),
}
CAPTION = (
    "Each panel is one score over the proposals that came so far, kept or dropped; the dashed line is the limit: right "
    "of a most, or left of a least, a proposal was dropped. ROUGE-L and distance are of instructions, shingles of "
    "whole tasks. A limit that cuts into the bulk drops what is merely of one kind."
)


def write_page(path: Path, found: dict[str, Any], ledger: Ledger) -> None:
    """Write the page of what `nachim data synth` made to `path`, atomically."""
    scores = {
        title: {"values": [value for _, value in ledger.scores[name]], "least": None, "most": None}
        | {end: found["limits"][name]}
        for name, (title, end) in SCORES.items()
        if ledger.scores.get(name)
    }
    drawn = None
    if scores:
        drawn = Html(histograms(scores).to_html(full_html=False, include_plotlyjs=False, config=CONFIG))
    spent = found["spent"]
    failed = [f"{count:,} requests failed: {reason}" for reason, count in spent["failures"].items()]
    again = [f"{count:,} sent again: {reason}" for reason, count in spent["retries"].items()]
    page = document(
        f"nachim: tasks by {found['method']}",
        get_plotlyjs(),
        element("header", element("h1", f"nachim data synth {found['method']} · {found['generator']}")),
        element("div", f"{found['kept']:,} of {found['came']:,} proposals kept.", kind="verdict"),
        bullets("What went wrong on the way", [*failed, *again], "gaps"),
        cards(
            [
                ("seeds", f"{found['seeds']:,}", "tasks to begin with"),
                ("rounds", f"{found['rounds']:,}", f"ended by {found['ended']}"),
                ("requests", f"{spent['requests']:,}", "retries counted in"),
                ("tokens", f"{spent['tokens']:,}", f"written, {spent['prompt_tokens']:,} read"),
            ]
        ),
        figure("Scores", drawn, f"{CAPTION} Vectors: {found['embedding']}.", "No proposal came as far as a score."),
        element("h2", "What was dropped"),
        table(("reason", "proposals"), sorted(_counts(found), key=lambda row: -found["dropped"][row[0]])),
        element("h2", "Samples"),
        *_samples(ledger),
    )
    write_text(path, page)


def _counts(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(reason, f"{count:,}") for reason, count in found["dropped"].items()]


def _samples(ledger: Ledger) -> list[Html]:
    found = []
    for reason, samples in sorted(ledger.samples.items()):
        rows = [(one[1], one[3], one[4]) for one in samples]
        found.append(element("h3", reason or "kept"))
        found.append(table(("id", "text", "for"), rows, left=3))
    return found
