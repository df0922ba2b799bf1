"""Shingles, the set they are kept in, and what counts as a near duplicate."""

from __future__ import annotations

import numpy as np
import pytest

from nachim.data import dedup, shingle
from nachim.data.dedup import Seen, distinct, leakage
from nachim.data.shingle import grams, shingles
from nachim.data.spool import spool


def plain_shingles(text):
    words = "".join(c.lower() if c.isalnum() or c == "_" else " " for c in text).split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


@pytest.fixture
def stored(tmp_path):
    """Makes a spool of texts."""
    return lambda *texts: spool([text.encode() for text in texts], tmp_path / "documents")


def test_there_are_as_many_shingles_as_different_runs_of_five_words(text):
    document = text(0, 400) + "x_1, (Y) [z]! " * 30 + text(0, 400)
    document = document.replace("✓", "v")
    assert len(shingles(document.encode())) == len(plain_shingles(document))


def test_shingles_see_words_only():
    assert np.array_equal(shingles(b"One two, three; four (five) SIX"), shingles(b"  one two three\nfour five six."))
    assert not np.array_equal(shingles(b"one two three four five"), shingles(b"five four three two one"))
    assert not np.array_equal(shingles(b"ab c d e f"), shingles(b"a bc d e f"))
    assert len(shingles(b"one two three")) == 1
    assert len(shingles(b" ... \n")) == len(shingles(b"")) == 0


def test_a_long_text_in_parts_has_the_shingles_of_the_whole(monkeypatch, text):
    document = text(1, 1000).encode()
    whole = shingles(document)
    monkeypatch.setattr(shingle, "PART_BYTES", 1000)
    monkeypatch.setattr(shingle, "OVERLAP_BYTES", 300)
    assert len(list(shingle._parts(document))) > 4
    assert np.array_equal(shingles(document), whole)


def test_texts_hashed_together_are_hashed_as_alone(text):
    texts = [text(i, 3 * i).encode() for i in range(12)] + [b"", b" . ", b"one", "한국어는 띄어쓰기가 드물다".encode()]
    hashes, owner = grams(texts, 5)
    for i, one in enumerate(texts):
        assert np.array_equal(hashes[owner == i], grams([one], 5)[0])


def test_scripts_without_spaces_have_a_word_a_character():
    assert len(shingles("漢字仮名交じり文".encode())) == 4
    assert len(shingles("fünf Wörter sind das hier".encode())) == 1


def test_hashes_do_not_move():
    assert shingles("fünf words of 나침 here".encode()).tolist() == [8120313909054672018, 11064300470707002719]


def test_seen_finds_what_was_added_and_little_else():
    hashes = np.random.default_rng(0).integers(0, 2**64, 400_000, dtype=np.uint64)
    seen = Seen(6 * 200_000)
    seen.add(hashes[:200_000])
    assert seen.share(hashes[:200_000]) == 1
    assert seen.share(hashes[200_000:]) < 3e-4
    assert seen.share(hashes[100_000:300_000]) == pytest.approx(0.5, abs=3e-4)
    assert seen.share(hashes[:0]) == 0


def test_a_corpus_too_large_for_the_table_is_sampled(monkeypatch):
    monkeypatch.setattr(dedup, "MOST_BITS", 20)
    hashes = np.random.default_rng(0).integers(0, 2**64, 2_000_000, dtype=np.uint64)
    seen = Seen(6 * 1_000_000)
    seen.add(hashes[:1_000_000])
    assert seen.share(hashes[:1_000_000]) == 1
    assert seen.share(hashes[1_000_000:]) < 0.05


def test_a_later_document_that_is_mostly_an_earlier_one_goes(stored, text):
    original, other = text(1, 200), text(2, 200)
    mostly = " ".join(original.split()[:130] + other.split()[:70])
    partly = " ".join(original.split()[:80] + text(3, 120).split())
    documents = stored(original, mostly, partly, other)
    told = []
    assert distinct(documents, np.arange(4), told.append).tolist() == [0, 2, 3]
    assert told[-1] == 1
    assert distinct(documents, np.array([3, 1, 0]), told.append).tolist() == [3, 1]


def test_documents_without_five_words_go_only_with_the_same_words(stored):
    documents = stored("one two three", "One, two: three!", "one two", "...", "?!")
    assert distinct(documents, np.arange(5), lambda done: None).tolist() == [0, 2, 3, 4]


def test_leakage_is_the_share_of_bytes_that_stand_in_train(stored, text):
    known, new = text(1, 300), text(3, 100)
    pieces = " ".join(known.split()[:60] + known.split()[200:260])
    documents = stored(known, text(2, 300), pieces, new)
    share = leakage(documents, np.array([0, 1]), np.array([2, 3]), lambda done: None)
    assert share == len(pieces.encode()) / (len(pieces.encode()) + len(new.encode()))
