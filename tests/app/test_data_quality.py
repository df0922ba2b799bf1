"""The verbs about quality as a script sees them: what they print, what they write, what they refuse."""

from __future__ import annotations

import json
import sys

import pytest

from nachim.app.cli import main

GOOD = "The boats that had left with the tide were seen from the hill, and we knew that all of them would be home. "
BAD = "click here { buy now } free $$$ www win win win "


@pytest.fixture
def nachim(monkeypatch, capsys):
    """Runs the command line; its exit status and what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["nachim", "data", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path):
    """Thirty good records and thirty bad ones, each a little different; their text stands under `body`."""
    for name, text in (("good", GOOD), ("bad", BAD)):
        rows = [
            {"id": f"{name}{i}", "body": f"{text * (2 + i % 3)} Number {i} of jane{i}@example.org.", "x": i}
            for i in range(30)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_models_are_trained_and_records_scored_by_them(nachim, files):
    good, bad, arpa, model = (files / name for name in ("good.jsonl", "bad.jsonl", "m.arpa", "m.npz"))
    status, said = nachim("ngram", good, "--out", arpa, "--order", 2, "--text-column", "body", "--json")
    assert (status, len(json.loads(said.out)["ngrams"])) == (0, 2)
    status, said = nachim("classifier", good, bad, "--out", model, "--text-column", "body", "--json")
    found = json.loads(said.out)
    assert (status, found["labels"], found["accuracy"]) == (0, ["bad", "good"], 1.0)
    out, page = files / "scored.jsonl", files / "page.html"
    status, said = nachim(
        *("score", bad, "--rules", "c4", "--ngram", arpa, "--classifier", model, "--text-column", "body"),
        *("--out", out, "--page", page, "--json"),
    )
    found = json.loads(said.out)
    assert (status, found["records"], found["in_bounds"]) == (0, 30, 0)
    assert found["scores"]["c4_brackets"]["out"] == 30
    assert found["dropped"] == {"c4_sentences": 30}
    rows = read(out)
    assert [row["x"] for row in rows] == list(range(30))
    assert all(row["quality"] < 0.5 and "text" not in row for row in rows)
    assert "c4_lorem_ipsum" in page.read_text()
    status, said = nachim("score", good, "--rules", "c4", "--ngram", arpa, "--text-column", "body", "--json")
    own = json.loads(said.out)["scores"]["perplexity"]["mean"]
    assert own < min(row["perplexity"] for row in rows) / 2


def test_records_are_drawn_and_masked(nachim, files):
    raw, out = files / "raw.jsonl", files / "drawn.jsonl"
    raw.write_text((files / "good.jsonl").read_text() + (files / "bad.jsonl").read_text())
    status, said = nachim(
        *("resample", raw, files / "good.jsonl", "--rows", 20, "--out", out, "--least-words", 10),
        *("--text-column", "body", "--json"),
    )
    found = json.loads(said.out)
    assert (status, found["records"], found["drawn"]) == (0, 60, 20)
    assert found["mean_weight_drawn"] > found["mean_weight"]
    lines = raw.read_text().splitlines()
    assert all(line in lines and json.loads(line)["id"].startswith("good") for line in out.read_text().splitlines())
    masked = files / "masked.jsonl.gz"
    status, said = nachim("mask", raw, "--out", masked, "--text-column", "body", "--json")
    assert json.loads(said.out)["found"]["email"] == 60
    status, said = nachim("score", masked, "--rules", "c4", "--text-column", "body", "--out", files / "m.jsonl")
    assert all("<email>" in row["body"] and "@" not in row["body"] for row in read(files / "m.jsonl"))


def test_bad_input_is_one_sentence(nachim, files):
    good, same = files / "good.jsonl", files / "deeper" / "good.jsonl"
    same.parent.mkdir()
    same.write_text(good.read_text())
    for words, told in (
        (("score", good, "--rules", "c5"), "no family of rules is called 'c5'"),
        (("score", good, "--rules"), "nothing to score by"),
        (("score", good), "no line of"),
        (("score", good, "--text-column", "body", "--out", good), "write to another file"),
        (("score", good, "--text-column", "body", "--rules", "--ngram", good), "is no ARPA file"),
        (("classifier", good, same, "--out", files / "m.npz"), "two files have one label"),
        (("resample", good, good, "--rows", 99, "--out", files / "o.jsonl", "--text-column", "body"), "rows is 99"),
        (("mask", files / "none.jsonl", "--out", files / "o.jsonl"), "no such file"),
    ):
        status, said = nachim(*words)
        assert (status, told in said.err) == (2, True), (words, said.err)
