"""`nachim data` as a script sees it."""

from __future__ import annotations

import json
import sys

import pytest

from nachim.app.cli import main

TEXT = "the needle of a compass points north wherever the ship that carries it may turn in the night"


@pytest.fixture
def nachim(monkeypatch, capsys):
    """Runs the command line; its exit status and what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["nachim", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr()

    return run


def test_dedup_and_contamination_speak_json(nachim, tmp_path):
    rows = [{"id": "a", "text": TEXT}, {"id": "b", "text": TEXT + " again"}, {"id": "c", "text": TEXT[::-1]}]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, said = nachim("data", "dedup", source, "--out", out, "--json")
    found = json.loads(said.out)
    assert status == 0
    assert found["kept"] == 2
    assert found["removed"] == [{"id": "a", "keeper": "b", "jaccard": pytest.approx(14 / 15, abs=1e-6)}]
    assert found["seconds"] >= 0
    status, said = nachim("data", "contamination", out, source, "--ngram", 13, "--json")
    found = json.loads(said.out)
    assert (status, found["contaminated"], found["rate"]) == (0, ["a", "b", "c"], 1.0)
    assert 0 < found["false_positive_rate"] < 1e-3


def test_people_are_told_who_went_for_whom(nachim, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"text": TEXT}) + "\n" + json.dumps({"text": TEXT}) + "\nnonsense\n")
    status, said = nachim("data", "dedup", source, "--out", tmp_path / "out.jsonl")
    assert status == 0
    assert "line 2 for line 1, Jaccard 1.000" in said.out
    assert "broken JSON line" in said.out


def test_a_mistake_is_one_sentence(nachim, tmp_path):
    status, said = nachim("data", "dedup", tmp_path / "no.jsonl", "--out", tmp_path / "out.jsonl")
    assert status == 2
    assert said.err.strip().endswith(f"nachim: no such file: {tmp_path / 'no.jsonl'}")
