"""Near duplicates with texts, signatures and keys on disk: what memory would find, and how little of it is held."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest

from nachim.data import gathered, near
from nachim.data.gathered import Gathered, Strip, digests
from nachim.data.minhash import VALUES, signatures
from nachim.data.near import cluster
from tests.data.in_memory import Plain

WORDS = [f"word{i}" for i in range(300)]
LIMIT = 64
"""Bytes of memory a text, beyond its signature."""


def prose(chance, count):
    return [chance.choice(WORDS) for _ in range(count)]


def corpus(seed):
    """Chains of small changes, texts of one template, the same text again, and texts of no or few words."""
    chance, found = random.Random(seed), [[], ["..."], ["one", "two"], ["One,", "TWO!"], ["..."]]
    for _ in range(8):
        chain = [prose(chance, chance.randrange(30, 80))]
        for _ in range(7):
            words = list(chain[-1])
            for place in chance.sample(range(len(words)), 2):
                words[place] = f"other{chance.randrange(10**6)}"
            chain.append(words)
        found += chain
    head = prose(chance, 40)
    found += [head + prose(chance, 14) for _ in range(12)]
    found += chance.choices(found, k=12)
    chance.shuffle(found)
    return [" ".join(words).encode() for words in found]


def gather(folder, raw, best):
    """The texts in a folder, taken in by sevens."""
    texts = Gathered(folder)
    for at in range(0, len(raw), 7):
        some = raw[at : at + 7]
        ids = [f"t{i}" for i in range(at, at + len(some))]
        texts.add(some, ids, signatures(some), digests(some), np.array(best[at : at + 7]))
    texts.seal()
    return texts


@pytest.mark.parametrize(
    ("seed", "threshold", "keep", "crowd"),
    [(0, 0.6, "first", 4096), (1, 0.6, "longest", 4096), (2, 0.7, "first", 3), (3, 0.8, "longest", 4096)],
)
def test_disk_finds_what_memory_finds(tmp_path, monkeypatch, seed, threshold, keep, crowd):
    for module, name, value in (
        (near, "CROWD", crowd),
        (near, "CHUNK", 16),
        (near, "ORPHANS", 2),
        (near, "RECENT_BYTES", 2000),
        (gathered, "CHUNK", 5),
        (gathered, "PART_BITS", 4),
    ):
        monkeypatch.setattr(module, name, value)
    raw = corpus(seed)
    best = [float(i % 3) if seed % 2 else 0.0 for i in range(len(raw))]
    size = [-len(text) if keep == "longest" else 0 for text in raw]
    plain = Plain(raw, sorted(range(len(raw)), key=lambda i: (-best[i], size[i], i)), threshold, crowd)
    assert bool(plain.orphans) == (threshold < 0.8) and len({*plain.keeper}) < len(raw) - 10
    assert bool(plain.crowded) == (crowd == 3)
    with gather(tmp_path / "texts", raw, best) as texts:
        found = cluster(texts, threshold, keep, lambda done: None)
        assert [texts[i] for i in range(len(raw))] == raw and texts.id(9) == "t9"
    assert found.keeper.tolist() == plain.keeper
    assert found.similarity.tolist() == plain.similarity
    assert found.crowded == len(plain.crowded)
    gone = np.flatnonzero(~found.kept).tolist()
    assert [found.exact[i] for i in gone] == [raw[i] == raw[plain.keeper[i]] for i in gone]


def test_a_text_takes_few_bytes_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(gathered, "PART_BITS", 8)  # as of many more texts: what is sorted at a time is a small part
    monkeypatch.setattr(gathered, "CHUNK", 1 << 8)
    chance, peaks = np.random.default_rng(0), []
    for count in (4000, 20_000):
        with Gathered(tmp_path / str(count)) as texts:
            tracemalloc.start()
            for _ in range(0, count, 1000):
                some = [b"%d" % i for i in range(1000)]
                values = chance.integers(0, 2**32, (1000, VALUES), dtype=np.uint32)
                halves = chance.integers(0, 2**63, (1000, 2), dtype=np.uint64)
                texts.add(some, range(1000), values, halves, np.zeros(1000))
            texts.seal()
            cluster(texts, 0.8, "longest", lambda done: None)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 16_000 <= LIMIT


def test_a_strip_gives_back_what_it_took(tmp_path):
    strip = Strip(tmp_path / "strip")
    strip.add([b"one", b"", "세".encode()])
    strip.add([])
    strip.add([b"x" * 100_000])
    strip.seal()
    assert [strip[i] for i in range(4)] == [b"one", b"", "세".encode(), b"x" * 100_000]
    assert strip.sizes().tolist() == [3, 0, 3, 100_000]
    strip.close()
