"""Canaries stand where their hashes say and as often as asked; exposure is that of its definition."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from nachim.data.canary import OPENING, Canaries, canary, exposure
from nachim.spec import UserError


def rows(count):
    return [{"id": i, "text": f"text {i}\n", "source": "s"} for i in range(count)]


def test_canaries_stand_in_the_share_of_rows_that_is_asked():
    stage = Canaries(counts=(20_000, 100_000))
    found = stage.many(rows(4000))
    numbers = Counter(row["canary"] for row in found)
    for number, share in ((0, 0.02), (1, 0.1)):
        assert abs(numbers[number] - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5
    for row in found:
        wanted = f"text {row['id']}\n"
        if row["canary"] >= 0:
            wanted += canary(0, row["canary"]) + "\n"
        assert row["text"] == wanted
    assert stage.many(rows(4000)[::-1]) == found[::-1]
    assert Canaries(counts=(20_000, 100_000), seed=1).many(rows(4000)) != found


def test_canaries_are_alike_but_for_their_digits():
    made = [canary(0, number) for number in range(500)]
    assert len(set(made)) == 500
    assert all(line.startswith(OPENING) and len(line) == len(made[0]) and line[-13:-1].isdigit() for line in made)
    digits = Counter("".join(line[-13:-1] for line in made))
    assert sum((count - 600) ** 2 / 600 for count in digits.values()) < 30  # chi-square of 9 degrees, p > 4e-4


def test_exposure_is_by_rank_and_by_fit():
    references = np.random.default_rng(0).normal(40, 2, 4095)
    found = exposure([references.min() - 1, float(np.median(references)), references.max() + 1, 20], references)
    assert [one.ranked for one in found] == pytest.approx([12, 1, 0, 12], abs=1e-2)
    assert found[1].fitted == pytest.approx(1, abs=0.05)
    assert found[2].fitted == pytest.approx(0, abs=0.01)
    # ten standard deviations below the mean: a rank cannot say so, the fit can (77 bits of a normal tail)
    assert 45 < found[3].fitted < 120


def test_a_model_that_remembers_nothing_has_the_mean_of_its_definition():
    chance = np.random.default_rng(1)
    found = exposure(chance.normal(size=3000), chance.normal(size=1023))
    assert np.mean([one.ranked for one in found]) == pytest.approx(1 / math.log(2), abs=0.1)


def test_bad_input_is_said():
    with pytest.raises(UserError, match="10 references or more; there are 9"):
        exposure([1.0], [1.0] * 9)
    with pytest.raises(UserError, match="finite"):
        exposure([math.nan], [1.0] * 20)
    with pytest.raises(UserError, match="each at least 1"):
        Canaries(counts=(0,))
    assert exposure([1.0, 0.5], [1.0] * 15)[1].ranked == 4
