"""What keeps a run safe is in its recipe, and a recipe that says nothing of it is the one it was before."""

from __future__ import annotations

import pytest

from nachim.spec import Keep, RollBack, SkipStep, Train, UserError
from tests.spec.examples import TRAIN


@pytest.mark.parametrize(
    ("part", "fields", "said"),
    [
        (Keep, {"last": 0}, "Keep.last is 0"),
        (Keep, {"every": -5}, "Keep.every is -5"),
        (SkipStep, {"sigmas": 0}, "sigmas is 0.0"),
        (SkipStep, {"window": 1}, "SkipStep.window is 1; it must be at least 2 steps"),
        (SkipStep, {"limit": 0}, "SkipStep.limit is 0"),
        (RollBack, {"every": 0}, "RollBack.every is 0"),
        (
            Train,
            {"tokens": 64, "batch_tokens": 64, "optimizer": TRAIN.optimizer, "schedule": TRAIN.schedule, "keep": 3},
            "Train.keep is 3, which is not Keep",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(part, fields, said):
    with pytest.raises(UserError, match=said):
        part(**fields)


def test_a_recipe_that_says_nothing_of_it_is_written_as_before():
    plain = Train(tokens=64, batch_tokens=64, optimizer=TRAIN.optimizer, schedule=type(TRAIN.schedule)())
    assert not {"keep", "on_spike"} & plain.to_json().keys()
    assert {"keep", "on_spike"} <= TRAIN.to_json().keys() and Train.from_json(TRAIN.to_json()) == TRAIN
