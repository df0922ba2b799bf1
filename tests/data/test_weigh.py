"""Weights before a run: a temperature's powers, caps by water-filling, courses; and what a run over its cap is told."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import optimize

from nachim.data.mix import Mixed, open_mixture, stages
from nachim.data.weigh import capped, course, portions, ramp, worth_reading
from nachim.law.repeat import R_STAR, effective_tokens
from nachim.spec.data import Files, Ingredient, Mixture, Reweight
from nachim.spec.error import UserError

SIZES = {"web": 800_000, "code": 200_000, "notes": 50_000}


def mixture(*weights: float, **fields: object) -> Mixture:
    """The three corpora by these weights."""
    parts = zip(SIZES, weights, strict=True)
    return Mixture(
        ingredients=tuple(Ingredient(name=name, corpus=Files(path=name), weight=weight) for name, weight in parts),
        **fields,
    )


def shares(found: Mixture) -> np.ndarray:
    """The shares of a mixture's first stretch."""
    weights = np.array(stages(found, SIZES)[0])
    return weights / weights.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.3, 1e9])
def test_a_temperature_takes_sizes_to_the_power_of_its_inverse(temperature):
    sizes = np.array(list(SIZES.values()), dtype=float)
    expected = sizes ** (1 / temperature) * [1, 1, 2]
    found = shares(mixture(1, 1, 2, temperature=temperature))
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-9)


def test_a_course_of_weights_is_taken_as_it_stands():
    changes = (Reweight(at_tokens=100, weights=(0.0, 1.0, 1.0)),)
    assert stages(mixture(1, 1, 1, temperature=1.0, changes=changes), SIZES)[1] == (0.0, 1.0, 1.0)


def test_what_is_worth_reading_is_where_the_law_has_that_slope():
    for least in (0.9, 0.5, 1 / math.e):
        times = worth_reading(least)
        slope = optimize.approx_fprime([times], lambda x: effective_tokens(float(x[0]), 1.0), 1e-6)[0]
        assert slope == pytest.approx(least, abs=1e-4)
    assert worth_reading(1.0) == 1.0
    assert worth_reading(1 / math.e) == pytest.approx(1 + R_STAR)


def test_a_cap_fills_up_the_others_in_proportion():
    # 600,000 tokens, no more than twice: notes has 100,000 at most, and so, once it is there, has code 400,000.
    found, told = capped(mixture(0.2, 0.5, 0.3), SIZES, 600_000, 2.0)
    expected = np.array([0.2, 0.5, 0.0]) / 0.7 * (1 - 1 / 6) + [0, 0, 1 / 6]
    np.testing.assert_allclose(shares(found), expected, rtol=1e-9)
    assert told == [
        "notes would be read 3.6 times over: at 2 it is 16.7% of the run, not 30.0%, and the others have the rest"
    ]
    found, told = capped(mixture(0.1, 0.6, 0.3), SIZES, 900_000, 2.0)
    np.testing.assert_allclose(shares(found), [4 / 9, 4 / 9, 1 / 9], rtol=1e-9)
    assert [line.split()[0] for line in told] == ["code", "notes"]


def test_a_mixture_within_its_caps_stays_as_it_is():
    whole = mixture(0.5, 0.3, 0.2)
    found, told = capped(whole, SIZES, 100_000, 1.0)
    assert not told
    np.testing.assert_allclose(shares(found), shares(whole), rtol=1e-12)


def test_a_cap_counts_the_whole_course():
    late = course(mixture(0.9, 0.1, 0.0), 100_000, [(0.5, {"notes": 1.0, "web": 1.0})])
    found, told = capped(late, SIZES, 400_000, 0.5)  # the change comes at an eighth of so long a run
    assert len(told) == 1
    read = portions(found, SIZES, 400_000)
    assert read["notes"].epochs == pytest.approx(0.5)
    assert sum(one.share for one in read.values()) == pytest.approx(1)
    assert read["web"].tokens == pytest.approx(sum(w * n for w, n in zip((0.9, 13 / 14), (50e3, 350e3), strict=True)))
    assert read["code"].worth == read["code"].tokens  # nothing of it is read twice


def test_an_anneal_and_a_ramp_change_weights_where_they_say():
    found = course(mixture(1, 1, 0), 1000, [(0.9, {"notes": 3.0, "web": 1.0})])
    assert found.changes == (Reweight(at_tokens=900, weights=(1.0, 0.0, 3.0)),)
    found = ramp(mixture(1, 0, 0), 1000, {"code": 1.0}, steps=5)
    assert [one.at_tokens for one in found.changes] == [200, 400, 600, 800]
    np.testing.assert_allclose([one.weights[1] for one in found.changes], [0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (lambda: capped(mixture(1, 1, 1), SIZES, 3_000_000, 2.0), "hold 1,050,000 tokens, which read 2 times over"),
        (lambda: capped(mixture(0, 1, 1), SIZES, 600_000, 2.0), "hold 250,000 tokens"),
        (lambda: capped(mixture(1, 1, 1), SIZES, 100, 0.0), "at most 0 times over: give a number above 0"),
        (
            lambda: capped(course(mixture(1, 1, 0), 400_000, [(0.5, {"notes": 1.0})]), SIZES, 400_000, 1.0),
            "has nothing but notes, which it reads more than 1 times over",
        ),
        (lambda: course(mixture(1, 1, 1), 1000, [(0.9, {"web2": 1.0})]), "no corpus 'web2'; did you mean 'web'"),
        (lambda: course(mixture(1, 1, 1), 1000, [(1.2, {"web": 1.0})]), "change at 1.2 of the run"),
        (lambda: course(mixture(1, 1, 1), 1000, [(0.9, {"web": -1.0})]), "none may be negative"),
        (lambda: ramp(mixture(1, 1, 1), 1000, {"web": 1.0}, steps=1), "1 steps make no ramp"),
        (lambda: worth_reading(0.0), "worth 0 of a fresh one"),
    ],
)
def test_what_makes_no_sense_is_refused(bad, why):
    with pytest.raises(UserError, match=why):
        bad()


def test_a_run_that_would_read_a_corpus_too_often_is_refused(data, tmp_path, text):
    place = tmp_path / "other"
    place.mkdir()
    for i in range(80):
        (place / f"{i}.txt").write_text(text(1000 + i, 50).replace("lo", "qu"), encoding="utf-8")
    other = Files(path=str(place), validation_bytes=4000)
    parts = (Ingredient(name="old", corpus=data.corpus, weight=1.0), Ingredient(name="new", corpus=other, weight=1.0))

    def opened(**fields: object) -> Mixed:
        return open_mixture(dataclasses.replace(data, corpus=Mixture(ingredients=parts, **fields)), tmp_path / "cache")

    whole = opened(most_epochs=2.0)
    epoch = whole.sources["new"].sequences_per_epoch * data.seq_len
    assert whole.seen(4 * epoch)["new"]["epochs"] == pytest.approx(2.0)
    with pytest.raises(
        UserError, match=r"of 'new', .* long: 2.5 times over, and Mixture.most_epochs is 2; give it less"
    ):
        whole.seen(5 * epoch)
    new = whole.sources["new"].prepared
    assert opened().seen(2 * epoch)["new"]["bytes"] == round(epoch * new.train_bytes / new.unique_tokens)
    sizes = {name: source.prepared.unique_tokens for name, source in whole.sources.items()}
    by_size = opened(temperature=1.0).last_shares
    assert by_size["new"] == pytest.approx(sizes["new"] / sum(sizes.values()))
