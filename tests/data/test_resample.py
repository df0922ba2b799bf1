"""Importance resampling: features as the published formula has them, weights by hand, draws by their odds."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nachim.data.resample import Hasher, Resample, draw, log_ratio, weights, words_of
from nachim.data.stage import Drop, Shelf
from nachim.spec import UserError

ODD = ["나침 🧭 e\u0301 İSTANBUL ß ǅ x_1 (a) -- b\u2028c\x1cd", "", " \n ", "Don't!! <<=>>", "a", "...\x00ſ ΑΣ"]


def counted(text, n, buckets):
    """Buckets of a text's n-grams, gone through one by one."""
    words = re.findall(r"\w+|[^\w\s]+", text.lower())
    found = Counter()
    for length in range(1, n + 1):
        for i in range(len(words) - length + 1):
            gram = " ".join(words[i : i + length])
            found[int(hashlib.sha256(gram.encode()).hexdigest(), 16) % buckets] += 1
    return found


def by_text(hasher, texts):
    buckets, owner = hasher.of(texts)
    return [Counter(buckets[owner == i].tolist()) for i in range(len(texts))]


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_features_are_the_hashed_ngrams(hasher_of_997, texts):
    assert by_text(hasher_of_997, texts) == [counted(text, 2, 997) for text in texts]


@pytest.fixture(scope="module")
def hasher_of_997():
    return Hasher(997, 2)


@pytest.mark.parametrize(("n", "buckets"), [(1, 50), (2, 10_000), (3, 65_536)])
def test_features_of_odd_texts_the_first_and_the_second_time(n, buckets):
    hasher = Hasher(buckets, n)
    for _ in range(2):
        assert by_text(hasher, ODD) == [counted(text, n, buckets) for text in ODD]
    total = sum((counted(text, n, buckets) for text in ODD), Counter())
    assert {i: c for i, c in enumerate(hasher.counts(ODD).tolist()) if c} == total


def test_a_weight_is_the_sum_of_log_ratios():
    target, raw = np.array([6, 0, 2]), np.array([1, 1, 2])
    ratio = log_ratio(target, raw)
    smooth = 1e-8
    by_hand = [np.log(0.75 + smooth) - np.log(0.25 + smooth), np.log(smooth) - np.log(0.25 + smooth)]
    by_hand += [np.log(0.25 + smooth) - np.log(0.5 + smooth)]
    assert ratio == pytest.approx(by_hand, rel=1e-12)
    found = weights(ratio, np.array([0, 0, 2, 1], dtype=np.uint32), np.array([0, 0, 0, 2]), 3)
    assert found == pytest.approx([2 * by_hand[0] + by_hand[2], 0, by_hand[1]], rel=1e-12)


def test_one_is_drawn_with_the_odds_of_its_weight():
    log_weights = np.log([1.0, 2.0, 5.0])
    times = 2000
    drawn = Counter(int(draw(log_weights, 1, seed)[0]) for seed in range(times))
    for i, share in enumerate((1 / 8, 2 / 8, 5 / 8)):
        assert abs(drawn[i] - times * share) < 4.5 * (times * share * (1 - share)) ** 0.5
    pairs = Counter(tuple(draw(log_weights, 2, seed).tolist()) for seed in range(times))
    first_then = 1 / 8 * 2 / 7 + 2 / 8 * 1 / 6  # 0 and 1, in either order, without replacement
    assert abs(pairs[(0, 1)] - times * first_then) < 4.5 * (times * first_then * (1 - first_then)) ** 0.5
    assert draw(log_weights, 3, 0).tolist() == [0, 1, 2]


def test_words_are_told_from_features():
    for n in (1, 2, 3):
        for words in (3, 4, 99):
            assert words_of(np.array([sum(words - k for k in range(n))]), n) == [words]


ALPHA = "the harbour was quiet and the boats lay still on grey water while gulls cried over the wet stones of the pier"
CODE = "def run ( self , x ) : return self . step ( x ) if x else None # never mind the rest of these odd rows here"


def rows_of(count):
    chance = np.random.default_rng(5)
    texts = [" ".join(chance.permutation((ALPHA if i % 4 else CODE).split() * 6)) for i in range(count)]
    return [{"id": i, "text": text, "source": "s"} for i, text in enumerate(texts)]


def run(stage, rows, cuts, tmp_path):
    shards = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    summaries = [stage.part(shard) for shard in shards]
    shelf = Shelf(len(shards), lambda i: shards[i], lambda i: summaries[i], tmp_path, lambda done: None)
    joined = stage.join(shelf)
    copies = [[dict(row) for row in shard] for shard in shards]
    pairs = zip(copies, joined.decisions, strict=True)
    return [outcome for copy, decision in pairs for outcome in stage.apply(copy, decision)], joined.facts


def test_what_is_drawn_looks_like_the_target_however_rows_are_sharded(tmp_path):
    target = tmp_path / "target.jsonl"
    target.write_text("".join(json.dumps({"text": CODE}) + "\n" for _ in range(3)))
    rows = [*rows_of(80), {"id": "short", "text": CODE, "source": "s"}]
    stage = Resample(target=str(target), rows=15, n=1)
    found, facts = run(stage, rows, [], tmp_path)
    assert facts == {"candidates": 80, "drawn": 15}
    kept = [row for row in found if not isinstance(row, Drop)]
    assert len(kept) == 15
    assert all(row["id"] % 4 == 0 and row["resample"] > 0 for row in kept)
    assert found[-1] == Drop("not drawn", row={**rows[-1], "resample": found[-1].row["resample"]})
    again, _ = run(stage, rows, [7, 7, 50], tmp_path)
    assert again == found
    assert stage.files() == (target,)


def test_bad_input_is_said(tmp_path):
    with pytest.raises(UserError, match="give at least 2"):
        Hasher(1)
    with pytest.raises(UserError, match="the target has not one word"):
        log_ratio(np.zeros(3), np.ones(3))
    with pytest.raises(UserError, match="4 texts cannot be drawn from 3"):
        draw(np.zeros(3), 4, 0)
    with pytest.raises(UserError, match="buckets is 1"):
        Resample(target="t", rows=1, buckets=1)
    (tmp_path / "t.jsonl").write_text('{"text": "a b"}\n')
    with pytest.raises(UserError, match="rows is 50; 20 rows have 100 words"):
        run(Resample(target=str(tmp_path / "t.jsonl"), rows=50), rows_of(20), [], tmp_path)
    with pytest.raises(UserError, match="no such file"):
        run(Resample(target=str(tmp_path / "none.jsonl"), rows=5), rows_of(20), [], tmp_path)
