"""A trace of some steps: complete, summed up, and without a trace in the run."""

from __future__ import annotations

import json

import pytest

from nachim.spec import UserError
from nachim.train.loop import Watch
from nachim.train.profile import OPERATIONS, PROFILE, TRACE, Operation, Profile
from tests.train.tiny import differing, go, rows, tiny_run, weights


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run of which two steps were traced: its folder, one that was not, and what was told."""
    run, root = tiny_run(7), tmp_path_factory.mktemp("profile")
    told: list[Operation] = []
    go(run, root / "traced", watch=Watch(onlookers=(Profile(2, told.extend),)))
    go(run, root / "plain")
    return root, told


def test_tracing_changes_no_bit(traced):
    root, _ = traced
    assert not differing(weights(root / "traced"), weights(root / "plain"))
    assert rows(root / "traced") == rows(root / "plain")


def test_the_trace_holds_the_steps_asked_for_and_opens_in_a_browser(traced):
    root, told = traced
    events = json.loads((root / "traced" / PROFILE / TRACE).read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert sum(name == "Optimizer.step#AdamW.step" for name in names) == 2
    products = sum(name == "aten::mm" for name in names)
    assert products == next(each.calls for each in told if each.name == "aten::mm") > 0


def test_the_table_holds_all_of_the_time_longest_first(traced):
    root, told = traced
    table = json.loads((root / "traced" / PROFILE / OPERATIONS).read_text())
    assert table["steps"] == 2 and [Operation(**each) for each in table["operations"]] == told
    assert sum(each.share for each in told) == pytest.approx(1)
    assert [each.seconds for each in told] == sorted((each.seconds for each in told), reverse=True)
    assert not any(each.name.startswith("ProfilerStep") for each in told)


def test_a_run_that_ends_before_is_traced_as_far_as_it_goes(tmp_path):
    go(tiny_run(3), tmp_path, watch=Watch(onlookers=(Profile(50),)))
    assert json.loads((tmp_path / PROFILE / OPERATIONS).read_text())["steps"] == 2


def test_no_steps_cannot_be_traced():
    with pytest.raises(UserError, match="--profile 0: give the number of steps to trace, at least 1"):
        Profile(0)
