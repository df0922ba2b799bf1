"""ROUGE-L against the table it is defined by, and the pool against a search through everything."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nachim.data.novelty import Pool, common, hashed, rouge_l, words_of
from nachim.data.passages import drawn, passages

WORDS = [
    *("sort", "the", "list", "of", "numbers", "name", "three", "kinds", "bread"),
    *("write", "a", "letter", "to", "my", "landlord", "about", "rent"),
]


def longest(one: list[str], other: list[str]) -> int:
    """The longest common subsequence by its table (Wagner and Fischer 1974)."""
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


@settings(max_examples=40)
@given(st.lists(st.sampled_from(WORDS[:6]), max_size=70), st.lists(st.sampled_from(WORDS[:6]), max_size=70))
def test_the_common_subsequence_is_the_tables(one, other):
    assert common(one, other) == longest(one, other)


def test_rouge_l_is_twice_the_common_words_over_all():
    assert rouge_l(["a", "b", "c", "d"], ["a", "x", "c"]) == pytest.approx(2 * 2 / 7)
    assert rouge_l([], ["a"]) == 0.0
    assert words_of("Name: three KINDS, it's!") == ["name", "three", "kinds", "it's"]


def test_hashed_vectors_are_those_of_words_and_pairs():
    one, same, other, nothing = hashed(["the cat sat", "The  cat SAT!", "rain fell over", "..."])
    assert one == pytest.approx(same) and np.linalg.norm(one) == pytest.approx(1)
    assert abs(one @ other) < 0.3 and not nothing.any()
    assert (hashed(["one two three"])[0] > 0).sum() == 5, "three words and two pairs"


def test_the_pool_finds_the_nearest_of_all():
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(4, 20))) for _ in range(60)]
    ids = [f"task {place}" for place in range(len(texts))]
    pool = Pool()
    for begin in range(0, len(texts), 7):
        pool.add(ids[begin : begin + 7], texts[begin : begin + 7], texts[begin : begin + 7])
    for asked in (*texts[:4], " ".join(draw.choices(WORDS, k=12))):
        scores = [rouge_l(words_of(asked), words_of(text)) for text in texts]
        assert pool.rouge(asked).score == pytest.approx(max(scores))
        assert pool.cosine(asked).score == pytest.approx((hashed(texts) @ hashed([asked])[0]).max(), abs=1e-5)
    assert pool.rouge(texts[5]).id == ids[5]


def test_overlap_is_the_jaccard_of_five_word_runs():
    words = [f"w{n}" for n in range(40)]
    one, other = " ".join(words), " ".join([*words[:30], *(f"v{n}" for n in range(10))])
    runs = [{tuple(text.split()[i : i + 5]) for i in range(36)} for text in (one, other)]
    pool = Pool()
    assert pool.overlap(one).id == "" and pool.rouge(one).score == 0.0 and pool.cosine(one).id == ""
    pool.add(["a", "b"], [other, "far"], [other, "quite another text of some seven words"])
    found = pool.overlap(one)
    assert (found.id, found.score) == ("a", pytest.approx(len(runs[0] & runs[1]) / len(runs[0] | runs[1])))


def test_passages_keep_every_line_that_fits_and_no_passage_is_too_long():
    draw = random.Random(1)
    text = "".join("x" * draw.randint(0, 60) + draw.choice(["\n", "\n\n", "\n  \n"]) for _ in range(300))
    found = list(passages(text, 100))
    assert max(map(len, found)) <= 100 and all(piece.strip() and piece == piece.strip("\n") for piece in found)
    kept = [line for piece in found for line in piece.split("\n") if line]
    assert kept == [line for line in text.splitlines() if line.strip()]
    assert list(passages("a\n" + "b" * 200 + "\nc", 100)) == ["a\n\nc"], "a longer line parts blocks"
    assert drawn(found, 500) == drawn([*found[::-1], found[0]], 500)
    assert 500 <= sum(map(len, drawn(found, 500))) < 600
