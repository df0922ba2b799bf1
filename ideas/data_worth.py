"""Three decisions about data, each worth a measured multiple of compute: near-deduplication, a filter, a mixture.

    python ideas/data_worth.py --prose ../shared/data/text/tinyshakespeare.txt

runs `nachim data worth` three times, on the functions below: on the embedded corpus as it is, without its near
duplicates and without the tails of perplexity; on the embedded corpus with as many bytes of edited copies of forty of
its documents, and deduplicated again; on code and prose at two shares of code. Everything is kept under
runs/ideas/data_worth, and finished runs are not repeated. What came of it: data_worth.md.
"""

from __future__ import annotations

import functools
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from nachim.data.arpa import write_arpa
from nachim.data.deduplicate import Deduplicate
from nachim.data.ingest import Origin
from nachim.data.ngram import perplexities, sentences_of, train
from nachim.data.pipeline import Pipeline
from nachim.data.quality import Perplexity
from nachim.data.read import Report
from nachim.data.source import open_source
from nachim.spec import Files, Ingredient, Mixture, Stdlib
from nachim.spec.disk import write_text

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "runs" / "ideas" / "data_worth"
COPIED, SMALLEST, LARGEST = 40, 2_000, 20_000
"""How many documents are copied, and how many bytes they have at least and at most."""
EDITED = 200
"""Of so many words of a copy one is another word of its document."""
TAIL = 0.1
"""Share of the documents that each tail of perplexity is."""


def raw() -> Pipeline:
    """The embedded corpus as it lies."""
    return Pipeline(origins=(Origin(corpus=Stdlib(), licence="PSF-2.0"),))


def without_near_duplicates() -> Pipeline:
    """The embedded corpus, a document out for each that is like it by 0.8."""
    return Pipeline(origins=raw().origins, stages=(Deduplicate(threshold=0.8),))


def without_tails() -> Pipeline:
    """The embedded corpus without the tenth of least and the tenth of most perplexity under its own word pairs."""
    model, limits = MADE / "pairs.arpa", MADE / "limits.json"
    if not limits.exists():
        _limits(model, limits)
    least, most = json.loads(limits.read_text(encoding="utf-8"))
    return Pipeline(origins=raw().origins, stages=(Perplexity(model=str(model), least=least, most=most),))


def copied() -> Pipeline:
    """The embedded corpus and as many bytes again of edited copies of `COPIED` of its documents.

    The copies of the r-th document are 1/r as many bytes as those of the first: what is copied is copied unevenly.
    """
    path = MADE / "copies.jsonl"
    if not path.exists():
        lines = (json.dumps({"id": name, "text": text}) + "\n" for name, text in _copies())
        write_text(path, "".join(lines))
    return Pipeline(origins=(*raw().origins, Origin(corpus=Files(path=str(path)), name="copies", licence="PSF-2.0")))


def copied_without_near_duplicates() -> Pipeline:
    """The same, a document out for each that is like it by 0.8."""
    return Pipeline(origins=copied().origins, stages=(Deduplicate(threshold=0.8),))


def code_30() -> Mixture:
    """Three tenths of code."""
    return _mixture(0.3)


def code_455() -> Mixture:
    """The share of code that a mixture law chose (code_share.md)."""
    return _mixture(0.455)


def _mixture(code: float) -> Mixture:
    prose = (MADE / "prose").read_text(encoding="utf-8")
    parts = (
        Ingredient(name="code", corpus=Stdlib(validation_bytes=500_000), weight=code),
        Ingredient(name="prose", corpus=Files(path=prose, validation_bytes=100_000), weight=round(1 - code, 6)),
    )
    return Mixture(ingredients=parts)


@functools.cache
def _documents() -> list[str]:
    return [text.decode() for text in open_source(Stdlib()).documents(Report())]


def _limits(model: Path, limits: Path) -> None:
    """Pairs of words counted over the whole corpus, so that no document is judged by others alone, and its tails."""
    texts = _documents()
    pairs = train([line for text in texts for line in sentences_of(text)], 2)
    write_arpa(pairs, model)
    found = perplexities(pairs, texts)
    write_text(limits, json.dumps(np.nanquantile(found, [TAIL, 1 - TAIL]).round(3).tolist()) + "\n")


def _copies() -> Iterator[tuple[str, str]]:
    """Edited copies, by name."""
    rng, texts = random.Random(0), _documents()
    fit = sorted(text for text in texts if SMALLEST <= len(text) <= LARGEST)
    whole, chosen = sum(len(text) for text in texts), rng.sample(fit, COPIED)
    harmonic = sum(1 / rank for rank in range(1, COPIED + 1))
    for rank, text in enumerate(chosen, start=1):
        words = list(re.finditer(r"\w+", text))
        for number in range(round(whole / harmonic / rank / len(text))):
            yield f"{rank}-{number}", _edited(text, words, rng)


def _edited(text: str, words: list[re.Match[str]], rng: random.Random) -> str:
    places = sorted(rng.sample(range(len(words)), max(1, len(words) // EDITED)))
    parts, at = [], 0
    for place in places:
        parts += [text[at : words[place].start()], rng.choice(words).group()]
        at = words[place].end()
    return "".join([*parts, text[at:]])


ASKED = {
    "stdlib": ("raw", "without_near_duplicates", "without_tails"),
    "copies": ("copied", "copied_without_near_duplicates"),
    "mixture": ("code_30", "code_455"),
}


def main(
    prose: Annotated[Path, tyro.conf.arg(metavar="FILE")],
    flops: float = 6e10,
    only: tuple[str, ...] = tuple(ASKED),
    workers: int = 0,
) -> None:
    """Ask the three questions, each with ladders of up to `flops`; `only` some of them."""
    MADE.mkdir(parents=True, exist_ok=True)
    write_text(MADE / "prose", str(prose.resolve()))
    for name, functions in ASKED.items():
        if name in only:
            sets = [f"{Path(__file__).resolve()}:{function}" for function in functions]
            options = ["--out", str(MADE / name), "--flops", f"{flops:g}", "--pairs", "1", "--workers", str(workers)]
            print(f"## {name}", flush=True)
            subprocess.run([Path(sys.executable).with_name("nachim"), "data", "worth", *sets, *options], check=True)


if __name__ == "__main__":
    tyro.cli(main)
