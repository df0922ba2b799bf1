"""HTML pieces of a report: everything handed in is escaped, nothing on the page is fetched."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee6; --paper: #ffffff; --card: #f6f7f9;
  --good: #15803d; --bad: #b91c1c; --wait: #a16207; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #333c49; --paper: #12161c;
  --card: #1a2029; --good: #4ade80; --bad: #f87171; --wait: #facc15; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; overflow-wrap: anywhere; }
header p { color: var(--soft); margin: 0; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .3rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
.verdict { font-size: 1.75rem; line-height: 1.3; font-weight: 650; margin: 0 0 .6rem; padding-left: .9rem;
  border-left: 6px solid var(--soft); color: var(--ink); }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.verdict.wait { border-color: var(--wait); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(225px, 1fr)); gap: .7rem; margin: 1.4rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .65rem .85rem; }
.card b { display: block; font-size: 1.3rem; font-weight: 650; line-height: 1.3; }
.card span, .card small { display: block; color: var(--soft); font-size: .82rem; line-height: 1.4; }
.gaps { background: var(--card); border: 1px solid var(--wait); border-radius: 8px; padding: .5rem 1rem; }
.gaps.bad { border-color: var(--bad); }
.gaps ul { margin: .3rem 0; padding-left: 1.2rem; }
.knobs { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: .5rem 1.6rem;
  margin: 1rem 0; }
.knobs label { display: grid; grid-template-columns: 1fr auto; font-size: .9rem; color: var(--soft); }
.knobs output { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.knobs input { grid-column: 1 / -1; width: 100%; margin: .3rem 0; accent-color: var(--soft); }
button { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .3rem .9rem; cursor: pointer; }
figure { margin: .4rem 0 0; break-inside: avoid; }
figcaption { margin-top: .6rem; }
figcaption, .note { color: var(--soft); font-size: .9rem; max-width: 62rem; }
.missing { border: 1px dashed var(--line); border-radius: 8px; color: var(--soft); padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .22rem .7rem .22rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.n { text-align: right; white-space: nowrap; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
code { font: .84em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.js-plotly-plot .cartesianlayer text, .js-plotly-plot .infolayer text, .js-plotly-plot .xaxislayer-above text,
.js-plotly-plot .yaxislayer-above text { fill: var(--ink) !important; }
@media print { body { max-width: none; padding: 0; font-size: 12px; } h2 { break-after: avoid; }
  .wide { overflow: visible; } }
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
"""What the browser may load for the page: what stands on it, and nothing else."""


class Html(str):
    """Markup whose text has been escaped."""


def safe(value: object) -> Html:
    """`value` as markup: text is escaped, markup is kept."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def element(tag: str, *inside: object, kind: str = "", **attributes: object) -> Html:
    """<tag class=kind attribute=...> around `inside`; text and attributes are escaped."""
    given = {**({"class": kind} if kind else {}), **attributes}
    said = "".join(f' {name}="{html.escape(str(value))}"' for name, value in given.items())
    return Html(f"<{tag}{said}>{''.join(safe(each) for each in inside)}</{tag}>")


def cards(entries: Iterable[tuple[str, str, str]]) -> Html:
    """Small cards of (what, number, note)."""
    boxes = [
        element("div", element("span", what), element("b", number), element("small", note), kind="card")
        for what, number, note in entries
    ]
    return element("div", *boxes, kind="cards")


def bullets(title: str, lines: Sequence[object], kind: str) -> Html:
    """A framed list under `title`; nothing when there are no lines."""
    if not lines:
        return Html("")
    items = [element("li", line) for line in lines]
    return element("div", element("b", title), element("ul", *items), kind=kind)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> Html:
    """A table whose first `left` columns hold text and the others numbers."""
    kinds = ["" if place < left else "n" for place in range(len(heads))]
    top = element("tr", *(element("th", head, kind=kind) for head, kind in zip(heads, kinds, strict=True)))
    body = [
        element("tr", *(element("td", cell, kind=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows
    ]
    return element("div", element("table", element("thead", top), element("tbody", *body)), kind="wide")


def folded(title: str, inside: Html) -> Html:
    """`inside`, shown once its title is clicked."""
    return element("details", element("summary", title), inside)


def figure(title: str, drawn: Html | None, caption: str, missing: str) -> Html:
    """A titled figure with its caption; where nothing was drawn, the reason stands in its place."""
    inside = (
        [element("figure", drawn, element("figcaption", caption))] if drawn else [element("p", missing, kind="missing")]
    )
    return Html(element("h2", title) + "".join(inside))


def document(title: str, script: str, *body: object) -> str:
    """The whole page; `script` is JavaScript that goes into its head as it is."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    script = f"<script>{script}</script>" if script else ""
    inside = "\n".join(safe(each) for each in body)
    return f'<!doctype html>\n<html lang="en"><head>{head}{script}</head>\n<body>\n{inside}\n</body></html>\n'


def power(value: float) -> str:
    """A large number as 3.14 × 10¹²."""
    if not (math.isfinite(value) and value > 0):
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def short(value: float) -> str:
    """A number with an SI prefix: 12.3 G."""
    for unit, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {prefix}"
    return f"{value:.3g} "


def flat(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Plain JSON as lines of (dotted.path, value), a part under its class name; lists of parts are only counted."""
    if isinstance(value, dict):
        if name and "part" in value:
            yield name, str(value["part"])
        for key, inner in value.items():
            if key != "part":
                yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield name, f"{len(value)} of them"
    elif isinstance(value, list):
        yield name, ", ".join(_plain(item) for item in value)
    else:
        yield name, _plain(value)


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
