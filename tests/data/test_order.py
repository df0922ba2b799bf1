"""The order is a permutation in every epoch, another in each, and the same however it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nachim.data.order import position

# Of seed 0 over 1000 sequences: a run that is resumed must see them again.
KNOWN = [106, 51, 280, 829, 940, 254, 591, 917]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 16, 17, 97, 100, 128, 1000, 1009, 4096, 65537])
def test_each_epoch_is_a_permutation(n):
    for epoch in (0, 1, 2**33):
        order = position(3, epoch * n + np.arange(n), n)
        assert np.array_equal(np.sort(order), np.arange(n))


@given(st.integers(0, 2**63), st.integers(1, 5000), st.integers(0, 2**40), st.integers(1, 50))
def test_a_permutation_whatever_the_seed(seed, n, epoch, parts):
    index = epoch * n + np.arange(n)
    order = position(seed, index, n)
    assert len(np.unique(order)) == n
    assert order.min() == 0
    assert order.max() == n - 1
    # However the indices are shared out, over batches or processes, each gets the same sequence.
    assert np.array_equal(np.concatenate([position(seed, part, n) for part in np.array_split(index, parts)]), order)
    scattered = np.empty_like(order)
    for rank in range(parts):
        scattered[rank::parts] = position(seed, index[rank::parts], n)
    assert np.array_equal(scattered, order)


def test_epochs_and_seeds_differ():
    n = 1000
    orders = [position(seed, epoch * n + np.arange(n), n) for seed in (0, 1, -1) for epoch in range(3)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(one == other) < 0.01


def test_known_values_do_not_move():
    assert position(0, np.arange(8), 1000).tolist() == KNOWN
    assert position(0, 5, 1000) == KNOWN[5]


def test_every_sequence_is_as_likely_at_every_index():
    n, epochs = 12, 6000
    order = position(0, np.arange(n * epochs), n).reshape(epochs, n)
    counts = np.stack([np.bincount(order[:, place], minlength=n) for place in range(n)])
    chi2 = ((counts - epochs / n) ** 2 / (epochs / n)).sum()
    # (n - 1)^2 degrees of freedom: mean 121, standard deviation 15.6.
    assert chi2 < 121 + 5 * 15.6


def test_neighbours_do_not_stay_neighbours():
    n = 100_000
    order = position(0, np.arange(n), n)
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.02
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
