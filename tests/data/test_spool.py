"""Distinct documents on disk: known by their digests, in little memory."""

from __future__ import annotations

import hashlib
import random
import tracemalloc

import numpy as np

from nachim.data import spool as module
from nachim.data.spool import _Digests, spool

LIMIT = 64
"""Bytes of memory a document, its digest included."""


def test_digests_are_known_as_by_a_set(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 100)
    chance, known, plain = random.Random(0), _Digests(), {}
    for _ in range(6000):
        lead = chance.randrange(1500) * 0x9E3779B97F4A7C15 % 2**64  # many begin as one before, and end otherwise
        digest = lead.to_bytes(8, "little") + bytes(22) + chance.randrange(3).to_bytes(2)
        assert known.add(digest) == (digest not in plain)
        plain[digest] = None
    assert len(plain) > 2048  # the table grew, more than once
    assert known.words().astype(">u8").tobytes() == b"".join(plain)


def test_the_content_is_the_hash_of_sorted_digests(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    documents = [f"text {i}".encode() for i in range(20)]
    digests = sorted(hashlib.sha256(one).digest() for one in documents)
    stored = spool([*documents, *documents[:5]], tmp_path / "documents")
    assert stored.content == hashlib.sha256(b"".join(digests)).hexdigest()
    assert (stored.duplicates, stored.size) == (5, sum(map(len, documents)))
    assert [stored[i] for i in range(20)] == documents


def test_a_document_takes_few_bytes_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1 << 8)
    peaks, counts = [], (4000, 8000, 16_000)
    for count in counts:
        tracemalloc.start()
        spool((b"%d" % i for i in range(count)), tmp_path / str(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert np.polyfit(counts, peaks, 1)[0] <= LIMIT
