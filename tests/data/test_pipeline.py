"""Pipelines: every row is accounted for, a build goes on where it was, and workers do not show in what comes out."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from nachim.data.deduplicate import Deduplicate
from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline, build
from nachim.data.quality import Rules
from nachim.data.rules import GopherWords
from nachim.data.shards import read_shard
from nachim.data.stage import Drop, Joined, PerRow, WholeSet
from nachim.data.work import modules_of
from nachim.spec import Files, UserError


@dataclass(frozen=True, kw_only=True)
class Long(PerRow):
    """Drops what has fewer words."""

    words: int = 10

    def one(self, row):
        row["words"] = len(row["text"].split())
        return row if row["words"] >= self.words else Drop("short", f"{row['words']} words", row)


@dataclass(frozen=True, kw_only=True)
class Above(WholeSet):
    """Drops what is shorter than the mean of all."""

    def part(self, rows):
        return {"sizes": np.array([len(row["text"]) for row in rows])}

    def join(self, shelf):
        sizes = [shelf.summary(i)["sizes"] for i in range(shelf.count)]
        mean = float(np.concatenate(sizes).mean())
        return Joined([(of >= mean).tolist() for of in sizes], {"mean": mean})

    def apply(self, rows, decision):
        return [row if stays else Drop("below") for row, stays in zip(rows, decision, strict=True)]


@pytest.fixture
def pipeline(tmp_path, text):
    """120 documents in four files, in shards of some ten."""
    for part in range(4):
        rows = [{"id": f"{part}.{i}", "text": text(100 * part + i, 5 + i), "url": f"u{i}"} for i in range(30)]
        place = tmp_path / "in" / f"{part}.jsonl"
        place.parent.mkdir(exist_ok=True)
        place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    origin = Origin(corpus=Files(path=str(tmp_path / "in")), columns=("url",), licence="none", name="words")
    return Pipeline(origins=(origin,), stages=(Long(), Above()), shard_bytes=1000)


def rows_in(out):
    return [row for path in sorted((out / "shards").glob("*.zst")) for row in read_shard(path)]


def test_every_row_is_accounted_for(pipeline, tmp_path):
    built = build(pipeline, tmp_path / "out")
    read, long, above = (one.ledger for one in built.passed)
    assert (read.came.rows, read.kept.rows) == (120, 120)
    assert {reason: count.rows for reason, count in long.dropped.items()} == {"short": 20}
    assert above.came.rows == 100 and above.kept.rows + above.dropped["below"].rows == 100
    rows = rows_in(tmp_path / "out")
    assert len(rows) == above.kept.rows
    assert all(row["source"] == "words" and row["url"] and row["words"] >= 10 for row in rows)
    assert len(built.shards) > 4
    assert above.facts["mean"] > 0
    assert len(long.scores["words"]) == 120


def test_only_what_changed_is_done_again(pipeline, tmp_path):
    first = build(pipeline, tmp_path / "out")
    again = build(pipeline, tmp_path / "out")
    assert [one.made for one in again.passed] == [0, 0, 0]
    assert again.to_json() == first.to_json()
    place = tmp_path / "in" / "3.jsonl"
    place.write_text(place.read_text().replace("u7", "v7"))
    changed = build(pipeline, tmp_path / "out")
    assert 0 < changed.passed[1].made < first.passed[1].made


def test_nothing_to_read(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(UserError, match=r"no document in files; 1 left out: not a string"):
        build(Pipeline(origins=(Origin(corpus=Files(path=str(tmp_path / "in.jsonl"))),)), tmp_path / "out")


CHILD = """
import json, sys
from nachim.data.work import learn
learn(json.loads(sys.argv[1]))
from nachim.data.stage import Stage
for told in json.loads(sys.argv[2]):
    print(type(Stage.from_json(told)).__module__)
"""


def test_a_process_that_knows_nothing_learns_every_part(pipeline):
    stages = (Long(), Deduplicate(), Rules(rules=(GopherWords(least=1.0),)))
    modules = modules_of(dataclasses.replace(pipeline, stages=stages))
    assert {"nachim.data.deduplicate", "nachim.data.quality", "nachim.data.rules"} <= {name for name, _ in modules}
    told = [json.dumps(one) for one in (modules, [stage.to_json() for stage in stages])]
    done = subprocess.run([sys.executable, "-c", CHILD, *told], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [type(stage).__module__ for stage in stages]
