"""Contamination: every shared n-gram is found, and the filter takes others for members as seldom as it says."""

from __future__ import annotations

import json
import random
import string

import numpy as np
import pytest

from nachim.data.bloom import Bloom
from nachim.data.contamination import Unit, contamination
from nachim.data.shingle import windows
from nachim.spec import UserError

WORDS = [f"w{i}" for i in range(3000)]


def prose(chance, count):
    return " ".join(chance.choice(WORDS) for _ in range(count))


def words_of(text):
    return "".join(c.lower() if c.isalnum() or c == "_" else " " for c in text).split()


def ngrams(text, n):
    words = words_of(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def store(path, texts):
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


@pytest.fixture
def pair(tmp_path):
    """Training text and a benchmark, some of whose items stand in it, whole, in part or differently written."""
    chance = random.Random(3)
    items = [prose(chance, chance.randrange(8, 60)) for _ in range(120)]
    train = [prose(chance, 200) for _ in range(150)]
    for place, item in enumerate(items[:40]):
        words = item.split()
        cut = words[: 5 + place]  # from too short to whole
        train[place] += " " + ", ".join(cut).upper() + ". " + prose(chance, 9)
    return store(tmp_path / "train.jsonl", train), store(tmp_path / "eval.jsonl", items), train, items


@pytest.mark.parametrize("n", [8, 13])
def test_exactly_the_items_that_share_an_ngram_are_found(pair, n, tmp_path):
    train_path, eval_path, train, items = pair
    of_train, of_items = [ngrams(text, n) for text in train], [ngrams(item, n) for item in items]
    seen, asked = set().union(*of_train), set().union(*of_items)
    wanted = {i: len(own & seen) / len(own) for i, own in enumerate(of_items) if own & seen}
    found = contamination(train_path, eval_path, Unit(n), "text", tmp_path / "clean.jsonl", lambda done: None)
    assert {item.id: item.share for item in found.contaminated} == pytest.approx(wanted, abs=1e-6)
    assert set(found.too_short) == {i for i, item in enumerate(items) if len(words_of(item)) < n}
    assert found.rate == pytest.approx(len(wanted) / (len(items) - len(found.too_short)))
    dirty = {i for i, own in enumerate(of_train) if own & asked}
    kept = [json.loads(line)["id"] for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert kept == [i for i in range(len(train)) if i not in dirty]
    assert found.train_contaminated == len(dirty) > 0


def test_runs_of_characters_are_found_whatever_separates_the_words(tmp_path):
    item = "The quick brown fox jumps over the lazy dog and runs away from it"
    train = [
        "x" * 80,
        "Then: the QUICK, brown fox -- jumps over the lazy dog and runs home.",
        prose(random.Random(0), 40),
    ]
    paths = (
        store(tmp_path / "t.jsonl", train),
        store(tmp_path / "e.jsonl", [item, "short", item[20:] + " again and again"]),
    )
    found = contamination(*paths, Unit(50, characters=True), "text", None, lambda done: None)
    assert [one.id for one in found.contaminated] == [0]
    assert found.too_short == [1]
    assert found.train_contaminated == 1


@pytest.mark.parametrize("n", [1, 7, 8, 9, 23, 50])
def test_windows_are_those_of_the_joined_words(n):
    chance = random.Random(n)
    texts = ["".join(chance.choice(string.ascii_letters + "  .,") for _ in range(200)) for _ in range(5)]
    hashes, place = windows([text.encode() for text in texts], n)
    for i, text in enumerate(texts):
        joined = " ".join(words_of(text))
        joined += "" if joined.endswith(" ") else " "
        wanted = [joined[k : k + n] for k in range(len(joined) - n + 1)]
        assert len(set(hashes[place == i].tolist())) in (len(set(wanted)), len(set(wanted)) + 1)


def test_a_filter_never_misses_and_is_mistaken_as_often_as_it_says():
    chance = np.random.default_rng(1)
    for count, rate in ((50, 1e-3), (20_000, 1e-2), (300_000, 1e-3)):
        members = chance.integers(0, 2**64, count, dtype=np.uint64)
        others = chance.integers(0, 2**64, 2_000_000, dtype=np.uint64)
        found = Bloom(members, rate)
        assert found.has(members).all()
        assert found.rate <= 1.2 * rate
        expected = found.rate * len(others)
        assert abs(found.has(others).sum() - expected) < 5 * expected**0.5 + 3


@pytest.mark.parametrize("train", ["none.jsonl", "e.txt"])
def test_bad_input_is_said(tmp_path, train):
    (tmp_path / "e.txt").write_text("{}")
    items = store(tmp_path / "e.jsonl", ["a b c"])
    with pytest.raises(UserError, match=r"no such file|must end in"):
        contamination(tmp_path / train, items, Unit(2), "text", None, lambda done: None)
    with pytest.raises(UserError, match="an n-gram of 0"):
        contamination(items, items, Unit(0), "text", None, lambda done: None)
    with pytest.raises(UserError, match="write to another file"):
        contamination(items, items, Unit(2), "text", items, lambda done: None)
