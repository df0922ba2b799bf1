"""What is held out is the same whatever stands beside it, and nothing near to it stays."""

from __future__ import annotations

import json

import pytest

from nachim.data.held_out import FarFrom, HoldOut
from nachim.data.stage import Drop
from nachim.spec import UserError


def kept(stage, rows):
    return [one["id"] for one in stage.many([dict(row) for row in rows]) if not isinstance(one, Drop)]


@pytest.fixture
def rows(text):
    return [{"id": number, "text": text(number, 60), "source": "here"} for number in range(600)]


def test_a_share_goes_and_only_it_stays_where_that_is_asked_for(rows):
    stay, go = kept(HoldOut(share=0.2), rows), kept(HoldOut(share=0.2, only=True), rows)
    assert sorted(stay + go) == list(range(600))
    assert 90 <= len(go) <= 150
    assert set(kept(HoldOut(share=0.1, only=True), rows)) < set(go)


def test_who_goes_depends_on_the_text_alone(rows):
    go = kept(HoldOut(share=0.2, only=True), rows)
    other = [{**row, "source": "there"} for row in reversed(rows[:300])]
    assert kept(HoldOut(share=0.2, only=True), other) == [one for one in reversed(go) if one < 300]


def test_a_share_is_a_share():
    with pytest.raises(UserError, match="between 0 and 1"):
        HoldOut(share=1.0)


def test_what_is_near_to_other_text_goes(tmp_path, text):
    path = tmp_path / "held.jsonl"
    path.write_text(json.dumps({"text": text(0, 200)}) + "\n" + json.dumps({"text": text(1, 200)}) + "\n")
    words = text(0, 200).split()
    rows = [
        {"id": "same", "text": text(0, 200)},
        {"id": "most of it", "text": " ".join(words[:150] + text(2, 40).split())},
        {"id": "some of it", "text": " ".join(words[:40] + text(2, 150).split())},
        {"id": "of both", "text": " ".join(words[:100]) + "\n" + text(1, 200)},
        {"id": "other", "text": text(3, 200)},
        {"id": "no word", "text": "!"},
    ]
    assert kept(FarFrom(texts=(str(path),)), rows) == ["some of it", "other", "no word"]
