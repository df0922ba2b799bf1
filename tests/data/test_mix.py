"""A mixture's order is a pure function of the index, its shares are those asked for, and each corpus keeps its own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nachim.data.mix import Turns, open_mixture
from nachim.data.pack import Batches
from nachim.data.prepare import prepare
from nachim.spec.data import Files, Ingredient, Mixture, Reweight
from nachim.spec.error import UserError

WEIGHTS = st.lists(st.sampled_from([0.0, 0.05, 0.1, 0.25, 1.0, 7.0]), min_size=1, max_size=4).filter(any)


@st.composite
def turns(draw):
    """Stretches of weights of one to four ingredients, some without any."""
    first = draw(WEIGHTS)
    others = draw(st.lists(st.permutations(first), max_size=2))
    begins = np.cumsum([0, *draw(st.lists(st.integers(0, 400), min_size=len(others), max_size=len(others)))])
    weights = tuple(tuple(one) for one in (first, *others))
    return Turns(tuple(int(one) for one in begins), weights, draw(st.sampled_from([0, 1, -1, 2**31, 2**63])))


@settings(max_examples=40)
@given(turns(), st.integers(1, 1000))
def test_every_stretch_has_its_shares_and_every_ingredient_its_turns_in_order(course, length):
    who, turn = course.at(np.arange(length))
    for one in range(len(course.weights[0])):
        assert np.array_equal(turn[who == one], np.arange(np.sum(who == one)))
    for begin, end, weights in zip(course.begins, (*course.begins[1:], length), course.weights, strict=True):
        expected = np.array(weights) / sum(weights)
        for stop in range(begin, min(end, length), 13):
            counts = np.bincount(who[begin:stop], minlength=len(weights))
            assert np.all(np.abs(counts - (stop - begin) * expected) < len(weights))
            assert not counts[expected == 0].any()
    assert np.array_equal(course.counts(length), np.bincount(who, minlength=len(course.weights[0])))


@settings(max_examples=40)
@given(turns(), st.integers(0, 2**37), st.integers(1, 6))
def test_whoever_asks_for_an_index_is_told_the_same(course, first, parts):
    index = first + np.arange(100)
    who, turn = course.at(index)
    for rank in range(parts):
        mine = course.at(index[rank::parts])
        assert np.array_equal(mine[0], who[rank::parts])
        assert np.array_equal(mine[1], turn[rank::parts])
    back = course.at(index[::-1])
    assert np.array_equal(back[0][::-1], who)
    assert np.array_equal(back[1][::-1], turn)


def test_a_share_of_replay_is_spread_evenly():
    who, _ = Turns((0,), ((0.05, 0.95),)).at(np.arange(10_000))
    assert np.all(np.diff(np.flatnonzero(who == 0)) == 20)


@pytest.fixture
def other(tmp_path, text):
    """A second corpus: 80 documents of other words."""
    place = tmp_path / "other"
    place.mkdir()
    for i in range(80):
        (place / f"{i}.txt").write_text(text(1000 + i, 50).replace("lo", "qu"), encoding="utf-8")
    return Files(path=str(place), validation_bytes=4000)


def mixed(data, other, old, new, *changes):
    """`data` with that weight of its corpus, and of the other."""
    parts = (Ingredient(name="old", corpus=data.corpus, weight=old), Ingredient(name="new", corpus=other, weight=new))
    return dataclasses.replace(data, corpus=Mixture(ingredients=parts, changes=changes))


def test_a_corpus_without_company_is_what_it_is_alone(data, other, tmp_path):
    whole = open_mixture(mixed(data, other, 1.0, 0.0), tmp_path / "cache")
    alone = Batches(prepare(data, tmp_path / "cache"), data)
    assert np.array_equal(whole.batch(5, 300), alone.batch(5, 300))
    assert whole.tokenizer.read_bytes() == alone.tokenizer.read_bytes()
    assert np.array_equal(whole.sources["old"].validation(64), alone.validation(64))
    assert whole.last_shares == {"old": 1.0, "new": 0.0}


def test_sequences_come_from_both_and_are_counted(data, other, tmp_path):
    whole = open_mixture(mixed(data, other, 0.25, 0.75), tmp_path / "cache")
    x = whole.batch(0, 400)
    who, _ = whole.turns.at(np.arange(400))
    for one, source in enumerate(whole.sources.values()):
        assert np.array_equal(x[who == one], source.batch(0, int(np.sum(who == one))))
    assert np.array_equal(np.concatenate([whole.batch(i, 1) for i in range(400)]), x)
    seen = whole.seen(400 * 16)
    assert [one["tokens"] for one in seen.values()] == [100 * 16, 300 * 16]
    assert seen["new"]["epochs"] == 300 / whole.sources["new"].sequences_per_epoch
    new = whole.sources["new"].prepared
    assert new.tokenizer.to_str() == whole.sources["old"].prepared.tokenizer.to_str()
    assert new.bytes_per_token[new.validation].sum() == new.validation_bytes


def test_weights_change_at_their_token(data, other, tmp_path):
    whole = open_mixture(mixed(data, other, 0.0, 1.0, Reweight(at_tokens=100, weights=(3.0, 1.0))), tmp_path / "cache")
    who, _ = whole.turns.at(np.arange(107))
    assert np.array_equal(who[:7], np.ones(7))  # 100 tokens end within the seventh sequence of 16
    assert np.bincount(who[7:]).tolist() == [75, 25]
    assert whole.last_shares == {"old": 0.75, "new": 0.25}


def test_a_mixture_insists_on_its_tokens(data, other, tmp_path):
    asked = dataclasses.replace(mixed(data, other, 1.0, 1.0), fingerprint_of_tokens="ab12")
    with pytest.raises(UserError, match="the run was made with the tokens ab12, and its mixture has"):
        open_mixture(asked, tmp_path / "cache")
    with pytest.raises(UserError, match="a Mixture is read by a run alone"):
        prepare(asked, tmp_path / "cache")


def test_known_turns_do_not_move():
    """A run that is resumed must go on with the same corpora."""
    course = Turns((0, 10), ((0.25, 0.35, 0.4), (0.0, 0.5, 0.5)), 3)
    assert course.at(np.arange(16))[0].tolist() == [1, 2, 1, 2, 0, 1, 2, 0, 2, 1, 2, 1, 2, 1, 2, 1]
