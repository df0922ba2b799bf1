"""Deduplication and contamination beside peers, on the standard library's own source; megabytes a core-second.

    python bench/data.py [--megabytes 8] [--rounds 3] [--json]

Peers are timed where they can be imported (datasketch; datatrove, which brings its own tokeniser); nothing here needs
them. Rounds take turns, processor time is counted, medians are printed. Recall and wrong removals are of pairs made by
editing texts, their similarity counted exactly; contamination of items cut from the text, and of others that are not.
"""

from __future__ import annotations

import itertools
import json as jsonlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from nachim.data.bloom import Bloom
from nachim.data.contamination import Unit, contamination
from nachim.data.distinct import distinct_records
from nachim.data.minhash import jaccard, signatures
from nachim.data.read import Report
from nachim.data.shingle import batches, shingles
from nachim.data.source import open_source
from nachim.spec import Stdlib

HASHES = 112
THRESHOLD = 0.8


def texts_of(megabytes: float) -> list[str]:
    """Source files of the standard library, `megabytes` of them."""
    found, size = [], 0
    for raw in open_source(Stdlib()).documents(Report()):
        found.append(raw.decode())
        size += len(raw)
        if size > megabytes * 1e6:
            break
    return found


def ours(texts: list[str]) -> None:
    """Our signatures."""
    for batch in batches((text.encode() for text in texts), len):
        signatures(batch)


def by_datasketch(texts: list[str]) -> None:
    """datasketch's MinHash of 5-word shingles, as its documentation shows, its updates in batches."""
    from datasketch import MinHash

    for text in texts:
        words = text.lower().split()
        made = MinHash(num_perm=HASHES)
        made.update_batch([" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))])


def by_datatrove(texts: list[str]) -> None:
    """datatrove's signature stage, at its default of 5-grams and 14 buckets of 8 hashes."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    with tempfile.TemporaryDirectory() as folder:
        config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
        stage = MinhashDedupSignature(output_folder=folder, config=config, language="en")
        stage.run((Document(text=text, id=str(i)) for i, text in enumerate(texts)), 0, 1)


def rates(texts: list[str], rounds: int) -> dict[str, float]:
    """Megabytes of text a second of processor time: ours, and every peer that can be imported."""
    works: dict[str, Callable[[list[str]], None]] = {"nachim": ours}
    for name, work in (("datasketch", by_datasketch), ("datatrove", by_datatrove)):
        try:
            work(texts[:2])
        except ImportError as error:
            Console(stderr=True).print(f"{name} is not timed: {error}")
        else:
            works[name] = work
    size = sum(len(text.encode()) for text in texts) / 1e6
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.process_time()
            work(texts)
            times[name].append(time.process_time() - began)
    return {name: size / statistics.median(taken) for name, taken in times.items()}


def edited(text: str, share: float, chance: random.Random) -> str:
    """The text with about this share of its words changed."""
    words = text.split(" ")
    for place in chance.sample(range(len(words)), round(share * len(words))):
        words[place] = f"edited{chance.randrange(10**9)}"
    return " ".join(words)


def labelled(texts: list[str]) -> dict[str, object]:
    """Recall of pairs at a true similarity of 0.8 or more, removals that are wrong, and the speed of the whole."""
    chance = random.Random(0)
    rows = {f"a{i}": text[:8000] for i, text in enumerate(texts)}
    made = {f"b{i}": edited(rows[f"a{i}"], chance.uniform(0.0005, 0.03), chance) for i in range(0, len(texts), 2)}
    rows |= made
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        path.write_text("".join(jsonlib.dumps({"id": name, "text": text}) + "\n" for name, text in rows.items()))
        began = time.process_time()
        found = distinct_records(path, out, THRESHOLD, "longest", "text", lambda what, done: None)
        seconds = time.process_time() - began
    hashed = {name: shingles(text.encode()) for name, text in rows.items()}
    removed = {str(one.id): one for one in found.removed}
    pairs = [(f"a{name[1:]}", name) for name in made]
    near = [(a, b) for a, b in pairs if jaccard(hashed[a], hashed[b]) >= THRESHOLD]
    wrong = [one for one in removed.values() if jaccard(hashed[str(one.id)], hashed[str(one.keeper)]) < THRESHOLD]
    size = sum(len(text.encode()) for text in rows.values()) / 1e6
    return {
        "records": len(rows),
        "pairs": len(near),
        "recall": sum(a in removed or b in removed for a, b in near) / len(near),
        "wrong_removals": len(wrong),
        "megabytes_per_second": size / seconds,
    }


def decontaminated(texts: list[str]) -> dict[str, object]:
    """Recall and false alarms of 13-grams, how often the filter is mistaken, and megabytes a second."""
    chance = random.Random(1)
    inside = [words for text in texts if len(words := text.split()) > 60]
    cut = [" ".join(words[at : at + 40]) for words in inside if (at := chance.randrange(len(words) - 40)) >= 0]
    pool = sorted(filter(str.isalnum, set(itertools.chain.from_iterable(inside))))
    outside = [" ".join(chance.choices(pool, k=40)) for _ in cut]
    with tempfile.TemporaryDirectory() as folder:
        train, items = Path(folder) / "train.jsonl", Path(folder) / "eval.jsonl"
        train.write_text("".join(jsonlib.dumps({"text": text}) + "\n" for text in texts))
        rows = [*(("in", text) for text in cut), *(("out", text) for text in outside)]
        named = ({"id": f"{kind}{i}", "text": text} for i, (kind, text) in enumerate(rows))
        items.write_text("".join(jsonlib.dumps(row) + "\n" for row in named))
        began = time.process_time()
        found = contamination(train, items, Unit(13), "text", None, lambda done: None)
        seconds = time.process_time() - began
    judged = len(cut) - sum(str(name).startswith("in") for name in found.too_short)
    others = np.random.default_rng(0).integers(0, 2**64, 20_000_000, dtype=np.uint64)
    members = np.random.default_rng(1).integers(0, 2**64, 300_000, dtype=np.uint64)
    filtered = Bloom(members, 1e-4)
    return {
        "items": len(rows),
        "recall": sum(str(item.id).startswith("in") for item in found.contaminated) / judged,
        "false_alarms": sum(str(item.id).startswith("out") for item in found.contaminated),
        "filter_rate_stated": filtered.rate,
        "filter_rate_measured": float(filtered.has(others).mean()),
        "megabytes_per_second": sum(len(text.encode()) for text in texts) / 1e6 / seconds,
    }


def main(megabytes: float = 8.0, rounds: int = 3, json: bool = False) -> None:
    """Time and count, and print the tables."""
    texts = texts_of(megabytes)
    found = {"signatures": rates(texts, rounds), "dedup": labelled(texts), "contamination": decontaminated(texts)}
    if json:
        print(jsonlib.dumps(found))
        return
    own = found["signatures"]["nachim"]
    table = Table("signatures", "MB a core-second", "ours is faster by")
    for name, rate in found["signatures"].items():
        table.add_row(name, f"{rate:.1f}", f"{own / rate:.1f}")
    console = Console()
    console.print(table)
    for name in ("dedup", "contamination"):
        console.print(
            name, {key: round(value, 6) if isinstance(value, float) else value for key, value in found[name].items()}
        )


if __name__ == "__main__":
    tyro.cli(main)
