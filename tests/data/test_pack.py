"""Sequences by global index, validation windows, and the bytes behind their targets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nachim.data.order import position
from nachim.data.pack import Batches
from nachim.spec.error import UserError


@pytest.fixture
def batches(prepared, data):
    """`prepared` in sequences of 16 tokens."""
    return Batches(prepared, data)


def test_an_epoch_predicts_each_token_once(batches, prepared):
    n = batches.sequences_per_epoch
    assert n == (prepared.unique_tokens - 1) // 16
    x = batches.batch(0, n)
    assert x.shape == (n, 17)
    assert x.dtype == np.int64
    order = position(1, np.arange(n), n)
    assert np.array_equal(x[np.argsort(order), 1:].ravel(), prepared.train[1 : n * 16 + 1])
    assert np.array_equal(x[np.argsort(order), :-1].ravel(), prepared.train[: n * 16])


def test_batches_do_not_depend_on_their_size(batches):
    n = batches.sequences_per_epoch
    whole = batches.batch(n - 20, 60)
    assert np.array_equal(np.concatenate([batches.batch(n - 20 + i, 1) for i in range(60)]), whole)
    assert np.array_equal(np.concatenate([batches.batch(n - 20, 37), batches.batch(n + 17, 23)]), whole)


def test_seeds_order_the_same_sequences_differently(batches, prepared, data):
    other = Batches(prepared, dataclasses.replace(data, seed=2))
    n = batches.sequences_per_epoch
    one, two = batches.batch(0, n), other.batch(0, n)
    assert not np.array_equal(one, two)
    assert np.array_equal(np.sort(one.sum(1)), np.sort(two.sum(1)))


def test_validation_windows_are_fixed_and_spread(batches, prepared):
    count = batches.validation_windows
    x = batches.validation(10 * 16)
    assert x.shape == (10, 17)
    assert np.array_equal(x, batches.validation(10 * 16 + 15))
    starts = [i * count // 10 * 16 for i in range(10)]
    assert np.array_equal(x, np.stack([prepared.validation[s : s + 17] for s in starts]))
    assert batches.validation(1).shape == (1, 17)
    assert batches.validation(10**9).shape == (count, 17)


def test_the_bytes_of_all_targets_are_those_of_the_text(batches, prepared):
    x = batches.validation(10**9)
    first = prepared.bytes_per_token[prepared.validation[0]]
    rest = prepared.bytes_per_token[prepared.validation[x[:, 1:].size + 1 :]].sum()
    assert batches.target_bytes(x) == prepared.validation_bytes - first - rest
    assert batches.target_bytes(x[:3]) == sum(batches.target_bytes(x[i : i + 1]) for i in range(3))


@pytest.mark.parametrize(("seq_len", "split"), [(3000, "validation"), (100_000, "train")])
def test_a_split_shorter_than_a_sequence(prepared, data, seq_len, split):
    longer = dataclasses.replace(data, seq_len=seq_len)
    with pytest.raises(UserError, match=f"the {split} split has .* set Data.seq_len to at most"):
        Batches(prepared, longer)
