"""`nachim data build`: a recipe in; shards, a ledger, tokens and a card out."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from nachim.app.cli import main
from nachim.data.pack import Batches
from nachim.data.prepare import prepare
from nachim.data.shards import read_shard
from nachim.spec import Data

RECIPE = """
from dataclasses import dataclass
from nachim.data.decontaminate import Decontaminate
from nachim.data.deduplicate import Deduplicate
from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline
from nachim.data.stage import Drop, PerRow
from nachim.spec import BPE, Data, Files

@dataclass(frozen=True, kw_only=True)
class Words(PerRow):
    least: int = 8

    def one(self, row):
        row["words"], row["kind"] = len(row["text"].split()), "<b>even</b>" if len(row["text"]) % 2 == 0 else "odd"
        return row if row["words"] >= self.least else Drop("few words", row=row)

def pipeline():
    return Pipeline(
        title="words & <numbers>",
        origins=(Origin(corpus=Files(path="{source}"), licence="CC0", name="drawn"),),
        stages=(Words(), Deduplicate(), Decontaminate(benchmarks=("{bench}",))),
        tokens=Data(corpus=Files(path="", validation_bytes=2000), tokenizer=BPE(vocab_size=300), seq_len=16,
                    packing="best-fit", mask_documents=True),
        shard_bytes=8000,
    )

def nothing():
    return 3
"""
WORDS = [f"{a}{b}" for a in ("ba", "ke", "mo", "tu", "zi") for b in ("", "rn", "lo", "st", "ng")]


@pytest.fixture
def place(tmp_path):
    """A recipe over 150 documents: some short, one twice, one known to a benchmark."""
    chance = np.random.default_rng(0)
    rows = [{"id": i, "text": " ".join(chance.choice(WORDS, 4 if i % 10 == 0 else 40 + i % 30))} for i in range(150)]
    rows.append({"id": "twin", "text": rows[1]["text"]})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "junk\n")
    (tmp_path / "bench.jsonl").write_text(json.dumps({"id": "q1", "text": rows[2]["text"]}) + "\n")
    paths = {"{source}": tmp_path / "in.jsonl", "{bench}": tmp_path / "bench.jsonl"}
    recipe = RECIPE
    for name, path in paths.items():
        recipe = recipe.replace(name, str(path))
    (tmp_path / "recipe.py").write_text(recipe)
    return tmp_path


@pytest.fixture
def build(place, monkeypatch, capsys):
    """Runs the verb on the recipe; exit status and what was printed."""

    def run(*words, name=""):
        given = ["build", f"{place / 'recipe.py'}{name}", "--out", place / "out", "--cache", place / "cache", *words]
        monkeypatch.setattr(sys, "argv", ["nachim", "data", *map(str, given)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr()

    return run


def test_a_build_from_recipe_to_card(build, place):
    status, said = build("--workers", 1, "--json")
    told = json.loads(said.out)
    assert status == 0
    read, words, dedup, clean = told["stages"]
    assert (read["came"]["rows"], read["dropped"]["broken JSON line"]["rows"]) == (152, 1)
    assert words["dropped"]["few words"]["rows"] == 15
    assert dedup["dropped"]["exact duplicate"]["rows"] == 1
    assert clean["facts"]["benchmarks"][0]["contaminated"] == {"q1": 1.0}
    assert clean["kept"]["rows"] == 134
    assert told["origins"][0]["licence"] == "CC0" and told["origins"][0]["kept"]["rows"] == 134
    out = place / "out"
    rows = [row for path in sorted((out / "shards").iterdir()) for row in read_shard(path)]
    assert len(rows) == 134 and {row["source"] for row in rows} == {"drawn"}
    assert json.loads((out / "card.json").read_text()) == told
    data = Data.load(out / "data.json")
    prepared = prepare(data, place / "cache")
    assert data.fingerprint_of_tokens == prepared.fingerprint == told["tokens"]["fingerprint"]
    assert Batches(prepared, data).packing() == told["tokens"]["packing"]
    assert prepared.manifest["train"]["documents"] + prepared.manifest["validation"]["documents"] == 134


def test_the_card_is_one_page_that_escapes_and_shows_what_went(build, place):
    status, said = build("--workers", 1)
    assert status == 0
    assert "15 dropped: few words" in said.out and "card.html" in said.out
    page = (place / "out" / "card.html").read_text()
    assert "words &amp; &lt;numbers&gt;" in page
    assert "<b>even</b>" not in page
    assert "Dropped: few words" in page and "Dropped: exact duplicate" in page
    assert "1 stays, Jaccard 1.000" in page
    assert "CC0" in page and "nachim data build" in page
    assert not re.search(r'(src|href)="?https?:', re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_a_second_build_makes_nothing(build, place):
    build("--workers", 1)
    status, said = build("--workers", 1, "--json")
    assert status == 0
    assert [stage["made"] for stage in json.loads(said.out)["stages"]] == [0, 0, 0, 0]


def test_what_is_no_recipe_is_one_sentence(build, place):
    status, said = build(name=":nothing")
    assert (status, said.err.strip()) == (
        2,
        f"nachim: nothing in {place}/recipe.py:nothing returned a int, not a Pipeline",
    )
    status, said = build("--workers", -1)
    assert status == 2 and "-1 workers cannot work" in said.err
