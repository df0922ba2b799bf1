"""Best-fit packing: every token once, whole documents where they fit, and bins as a plain search would fill them."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nachim.data.fit import best_fit, pack
from nachim.data.pack import Batches


def by_search(lengths, capacity):
    """Best fit decreasing, looking at every bin for every piece."""
    left, chosen = [], [0] * len(lengths)
    for piece in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [room for room in left if room >= lengths[piece]]
        place = left.index(min(fits)) if fits else len(left)
        if not fits:
            left.append(capacity)
        left[place] -= lengths[piece]
        chosen[piece] = place
    return chosen, left


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 30))
def test_bins_are_those_of_a_plain_search(lengths, capacity):
    bins = best_fit(np.array(lengths), capacity)
    rooms = capacity - np.bincount(bins, weights=lengths)
    assert rooms.min() >= 0
    assert sorted(rooms) == sorted(by_search(lengths, capacity)[1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_every_token_stands_in_one_piece(sizes):
    starts = np.cumsum([0, *sizes[:-1]])
    packed = pack(starts, sum(sizes), 16)
    tokens = np.concatenate([np.arange(s, s + n) for s, n in zip(packed.starts, packed.lengths, strict=True)])
    assert sorted(tokens) == list(range(sum(sizes)))
    assert packed.cut == sum(size > 16 for size in sizes)
    filled = [packed.lengths[a:b].sum() for a, b in zip(packed.bins[:-1], packed.bins[1:], strict=True)]
    assert max(filled) <= 16 and min(filled) > 0
    owner = np.searchsorted(starts, packed.starts, side="right")
    assert all((owner == i).sum() == -(-size // 16) for i, size in enumerate(sizes, start=1))


@pytest.fixture
def fitted(prepared, data):
    """Sequences of 128 tokens, packed by best fit."""
    return Batches(prepared, dataclasses.replace(data, seq_len=128, packing="best-fit"))


def test_an_epoch_predicts_each_token_once_and_nothing_else(fitted, prepared):
    n, end = fitted.sequences_per_epoch, fitted.end
    x = fitted.batch(0, n)
    assert x.shape == (n, 129)
    assert (x[:, 0] == end).all()
    wanted = ~((x[:, :-1] == end) & (x[:, 1:] == end))
    assert wanted.sum() == prepared.unique_tokens
    assert np.array_equal(np.sort(x[:, 1:][wanted]), np.sort(prepared.train))
    told = fitted.packing()
    assert told["padding_tokens"] == n * 128 - prepared.unique_tokens
    assert told["sequences"] == n and told["tokens_left_out"] == 0


def test_documents_that_fit_are_whole(fitted, prepared):
    end = fitted.end
    found = set()
    for row in fitted.batch(0, fitted.sequences_per_epoch):
        ends = np.flatnonzero(row == end)
        found |= {row[a + 1 : b + 1].tobytes() for a, b in itertools.pairwise(ends)}
    starts = np.append(prepared.train_documents, len(prepared.train))
    documents = [prepared.train[a:b].astype(np.int64) for a, b in itertools.pairwise(starts)]
    assert all(one.tobytes() in found for one in documents if len(one) <= 128)
    assert fitted.packing()["documents_cut"] == sum(len(one) > 128 for one in documents)


def test_a_stream_counts_the_documents_it_cuts(prepared, data):
    batches = Batches(prepared, dataclasses.replace(data, seq_len=128))
    told = batches.packing()
    owner = np.zeros(len(prepared.train), dtype=int)
    owner[prepared.train_documents[1:]] = 1
    owner = owner.cumsum()[1:]
    rows = [set(owner[i : i + 128]) for i in range(0, len(owner), 128)]
    assert told["documents_cut"] == sum(sum(doc in row for row in rows) > 1 for doc in range(told["documents"]))
    assert told["tokens_left_out"] == len(prepared.train) - 1 - told["sequences"] * 128
    assert told["padding_tokens"] == 0


def test_the_order_is_that_of_the_seed(fitted, prepared, data):
    n = fitted.sequences_per_epoch
    whole = fitted.batch(0, 2 * n)
    assert np.array_equal(fitted.batch(n - 1, 3), whole[n - 1 : n + 2])
    assert not np.array_equal(whole[:n], whole[n:])
