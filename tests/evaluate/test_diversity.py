"""Diversity of texts against the plainest loops, and scipy's entropy."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from nachim.evaluate.diversity import Tail, distinct, entropy, first_tokens, grams, numbered


def texts(seed: int, count: int = 12, vocab: int = 9) -> list[list[int]]:
    draw = random.Random(seed)
    return [[int(draw.expovariate(0.5)) % vocab for _ in range(draw.randint(0, 30))] for _ in range(count)]


def plain(documents: list[list[int]], n: int) -> list[tuple[int, ...]]:
    return [tuple(one[i : i + n]) for one in documents for i in range(len(one) - n + 1)]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_distinct_counts_different_n_grams_within_documents(n):
    documents, known = texts(0), plain(texts(0), n)
    assert [tuple(row) for row in grams(documents, n)] == known
    assert distinct(documents, n) == len(set(known)) / len(known)
    assert np.isnan(distinct([[1] * (n - 1)], n))


def test_numbers_of_rows_do_not_overflow():
    big = 2**62
    rows = np.array([[big, 1, 2, 3, 4], [big + 1, 1, 2, 3, 4], [big, 1, 2, 3, 4], [1, big, 2, 3, 4]])
    found = numbered(rows)
    assert found[0] == found[2] and len(set(found.tolist())) == 3


def test_entropy_is_that_of_the_counts():
    documents = texts(1)
    for n in (1, 2):
        counts = [list(Counter(plain(documents, n)).values())]
        if n == 2:
            counts.append(list(Counter(gram[:1] for gram in plain(documents, 2)).values()))
        expected = stats.entropy(counts[0]) - (stats.entropy(counts[1]) if n == 2 else 0)
        assert entropy(documents, n) == pytest.approx(expected)
    assert entropy([[5, 5, 5, 5]], 2) == pytest.approx(0)


@pytest.mark.parametrize("n", [1, 2])
def test_the_tail_is_the_rarest_that_have_a_share_together(n):
    human, other = texts(2, 60, 30), texts(3, 20, 33)
    tail, counts = Tail.of(human, n, 0.1), Counter(plain(human, n))
    rare = {tuple(row) for row in tail.rare.tolist()}
    taken = sum(counts[gram] for gram in rare)
    assert taken <= 0.1 * counts.total() < taken + min(counts[gram] for gram in counts if gram not in rare)
    assert max(counts[gram] for gram in rare) <= min(counts[gram] for gram in counts if gram not in rare)
    assert tail.mass(human) == pytest.approx(taken / counts.total()) and tail.unseen(human) == 0
    found = plain(other, n)
    assert tail.mass(other) == pytest.approx(sum(gram in rare for gram in found) / len(found))
    assert tail.unseen(other) == pytest.approx(sum(gram not in counts for gram in found) / len(found))


def test_texts_are_cut_to_as_many_tokens():
    found = first_tokens([[1, 2, 3], [4, 5], [6]], 4)
    assert [one.tolist() for one in found] == [[1, 2, 3], [4]]
    assert first_tokens([[1]], 9)[0].tolist() == [1]
