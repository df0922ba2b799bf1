"""Memory that duplicates take: bytes a document, from peaks at growing numbers of documents.

    python bench/data_memory.py [--documents 50000 100000 200000] [--json]

Documents are made up, of 30 words; a fifth are others with a word changed, a twentieth are others again. What does not
grow with them (what is hashed and sorted at a time, shingles and pairs met last) is set small, so that the slope shows
what does. `traced` is by Python's own account, numpy's arrays included; `resident` is what the system saw of a process
that did nothing else. Near duplicates are looked for as `nachim data dedup` does it, exact ones as tokens are made.
"""

from __future__ import annotations

import json as jsonlib
import tempfile
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import tyro
from _edited import SPAWN, peak_gib
from rich.console import Console
from rich.table import Table

from nachim.data import gathered, near, spool
from nachim.data.gathered import Gathered, digests
from nachim.data.minhash import signatures
from nachim.data.shingle import batches

WORDS = 30
LIMIT = 64
BATCH_BYTES = 1 << 14


def documents(count: int) -> Iterator[bytes]:
    """Texts, some of them near to one before, or the same."""
    chance, last = np.random.default_rng(0), [b""]
    for i in range(count):
        if i % 20 != 19:
            words = last if i % 5 == 4 else [b"w%d" % n for n in chance.integers(0, 1 << 20, WORDS)]
            last = [*words[:-1], b"x%d" % i] if i % 5 == 4 else words
        yield b" ".join(last)


def near_ones(count: int, folder: Path) -> None:
    """Look for near duplicates."""
    near.RECENT_BYTES, near.RECENT_PAIRS = 1 << 18, 1 << 8
    gathered.PART_BITS, gathered.CHUNK, near.CHUNK = 12, 1 << 12, 1 << 12
    with Gathered(folder) as texts:
        for some in batches(documents(count), len, BATCH_BYTES):
            texts.add(some, range(len(some)), signatures(some), digests(some), np.zeros(len(some)))
        texts.seal()
        near.cluster(texts, 0.8, "longest", lambda done: None)


def exact_ones(count: int, folder: Path) -> None:
    """Leave out exact duplicates."""
    spool.CHUNK = 1 << 12
    folder.mkdir()
    assert spool.spool(documents(count), folder / "documents").content


def peaks(name: str, count: int, folder: Path, traced: bool) -> float:
    """Bytes that this process took at most for the work called `name`."""
    work, before = {"near": near_ones, "exact": exact_ones}[name], peak_gib() * 2**30
    if traced:
        tracemalloc.start()
    work(count, folder)
    return float(tracemalloc.get_traced_memory()[1]) if traced else peak_gib() * 2**30 - before


def slope(name: str, counts: tuple[int, ...], traced: bool) -> float:
    """Bytes a document: the line through the peaks."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for count in counts:
            with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
                found.append(pool.submit(peaks, name, count, Path(folder) / str(count), traced).result())
    return float(np.polyfit(counts, found, 1)[0])


def main(documents: tuple[int, ...] = (50_000, 100_000, 200_000), json: bool = False) -> None:
    """Measure, and print the table."""
    found = {
        f"{name} duplicates": {kind: slope(name, documents, kind == "traced") for kind in ("traced", "resident")}
        for name in ("near", "exact")
    }
    if json:
        print(jsonlib.dumps(found))
        return
    table = Table("bytes a document", "traced", "resident", f"at most {LIMIT}")
    for name, kinds in found.items():
        table.add_row(name, *(f"{value:.1f}" for value in kinds.values()), str(max(kinds.values()) <= LIMIT))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
