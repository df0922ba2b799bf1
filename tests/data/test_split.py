"""Documents on disk, and which of them are held out."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from nachim.data.split import by_content, split
from nachim.data.spool import spool
from nachim.spec.data import Files
from nachim.spec.error import UserError


@pytest.fixture
def stored(tmp_path):
    """Makes a spool of documents."""
    return lambda documents: spool(documents, tmp_path / "documents")


def numbered(count, size):
    return [f"{i:0{size}}".encode() for i in range(count)]


def held_out(documents, wanted):
    corpus = Files(path="x", validation_bytes=wanted)
    train, validation = split(documents, by_content(documents, wanted), corpus)
    return train, validation


def test_a_spool_keeps_each_content_once(stored):
    documents = stored([b"one", b"two", b"one", "세".encode(), b"two"])
    assert [documents[i] for i in range(3)] == [b"one", b"two", "세".encode()]
    assert (documents.duplicates, documents.duplicate_bytes) == (2, 6)
    assert documents.sizes.tolist() == [3, 3, 3]


def test_the_content_of_a_spool_is_its_set_of_documents(stored):
    first = stored([b"one", b"two", b"three"]).content
    assert stored([b"three", b"two", b"one", b"one"]).content == first
    assert stored([b"one", b"two", b"thre", b"e"]).content != first


def test_validation_takes_the_smallest_hashes_until_it_is_full(stored):
    documents = stored(numbered(1000, 10))
    train, validation = held_out(documents, 95)
    by_hash = sorted(range(1000), key=lambda i: hashlib.sha256(documents[i]).digest())
    assert sorted(validation) == sorted(by_hash[:10])
    assert sorted([*train, *validation]) == list(range(1000))


def test_a_document_over_a_quarter_of_validation_is_never_held_out(stored):
    giants = [bytes([65 + i]) * 400 for i in range(20)]
    documents = stored([*giants, *numbered(200, 10)])
    _, validation = held_out(documents, 1000)
    sizes = documents.sizes[validation]
    assert sizes.max() <= 250
    assert 1000 <= sizes.sum() <= 1250


@pytest.mark.parametrize("wanted", range(40, 400, 23))
def test_validation_overshoots_by_a_quarter_at_most(stored, wanted):
    rng = np.random.default_rng(wanted)
    documents = stored([rng.bytes(size).hex().encode() for size in rng.integers(1, 50, 200)])
    _, validation = held_out(documents, wanted)
    assert wanted <= documents.sizes[validation].sum() <= 1.25 * wanted


def test_a_corpus_too_small_to_split(stored):
    documents = stored(numbered(49, 10))
    with pytest.raises(UserError, match=r"holds 490 bytes .*Files\.validation_bytes is 100.*at most 98"):
        held_out(documents, 100)
    held_out(documents, 98)


def test_a_corpus_of_large_documents_only(stored):
    documents = stored(numbered(20, 200))
    with pytest.raises(UserError, match=r"only 0 bytes .* small enough"):
        held_out(documents, 700)
