"""Deduplication and decontamination as stages: why each row goes, and that shards do not show."""

from __future__ import annotations

import dataclasses
import json

import pytest

from nachim.data.decontaminate import Decontaminate
from nachim.data.deduplicate import Deduplicate
from nachim.data.ingest import Origin
from nachim.data.minhash import jaccard
from nachim.data.pipeline import Pipeline, build
from nachim.data.shards import read_shard
from nachim.data.shingle import shingles
from nachim.spec import Files, UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def cleaned(tmp_path):
    """Passes rows through a stage in shards of some bytes; the ledger, who stayed, and who went (id to about)."""

    def made(rows, stage, shard_bytes=2000):
        path, out = write(tmp_path / "in.jsonl", rows), tmp_path / f"out{shard_bytes}"
        pipeline = Pipeline(origins=(Origin(corpus=Files(path=str(path))),), stages=(stage,), shard_bytes=shard_bytes)
        ledger = build(pipeline, out).passed[1].ledger
        stay = [row["id"] for shard in sorted((out / "shards").iterdir()) for row in read_shard(shard)]
        (place,) = out.glob("stages/*/dropped")
        gone = {row["id"]: row for shard in sorted(place.iterdir()) for row in read_shard(shard)}
        return ledger, stay, gone

    return made


@pytest.fixture
def rows(text):
    """40 texts, every fifth of them again with a word more, every tenth again as it is."""
    plain = [{"id": f"a{i}", "text": text(i, 40)} for i in range(40)]
    longer = [{"id": f"b{i}", "text": f"{plain[i]['text'].strip()} more"} for i in range(0, 40, 5)]
    same = [{"id": f"c{i}", "text": plain[i]["text"]} for i in range(0, 40, 10)]
    return [*plain, *longer, *same]


def test_whoever_goes_has_a_keeper_that_stays(cleaned, rows):
    ledger, stay, gone = cleaned(rows, Deduplicate())
    assert len(stay) == 40 and len(gone) == 12
    assert {reason: count.rows for reason, count in ledger.dropped.items()} == {"near duplicate": 12}
    by_id = {row["id"]: shingles(row["text"].encode()) for row in rows}
    for name, row in gone.items():
        keeper, told = row["about"].split(" stays, Jaccard ")
        assert keeper in stay
        assert jaccard(by_id[name], by_id[keeper]) == pytest.approx(float(told), abs=1e-3)
    assert ledger.facts["clusters"] == 8
    assert ledger.facts["clusters_by_size"] == {"2": 4, "3": 4}
    largest = ledger.facts["largest"][0]
    assert largest["rows"] == 3
    (whole,) = (row["text"].encode() for row in rows if row["id"] == largest["keeper"])
    assert largest["excerpt"] == whole[:200].decode(errors="ignore")


def test_an_excerpt_ends_with_its_text(cleaned, text):
    ledger, _, _ = cleaned([{"id": i, "text": text(i % 3, 6)} for i in range(6)], Deduplicate())
    assert [one["excerpt"] for one in ledger.facts["largest"]] == [text(i, 6) for i in range(3)]


def test_shards_do_not_show(cleaned, rows):
    whole, parts = (cleaned(rows, Deduplicate(), size)[1:] for size in (10**9, 500))
    assert whole == parts


def test_the_best_stays(cleaned, rows, tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Scored(Deduplicate):
        def part(self, rows):
            return super().part([{**row, "score": len(str(row["id"]))} for row in rows])

    _, stay, gone = cleaned([*rows, {"id": "best0", "text": rows[0]["text"]}], Scored(best="score"))
    assert "best0" in stay
    assert {"a0", "b0", "c0"} <= set(gone)


def test_exact_duplicates_are_told_apart(cleaned, text):
    same = text(1, 30)
    ledger, stay, _ = cleaned([{"id": "one", "text": same}, {"id": "two", "text": same}], Deduplicate())
    assert stay == ["one"]
    assert list(ledger.dropped) == ["exact duplicate"]


def test_what_stands_in_another_corpus_goes(cleaned, rows, tmp_path):
    other = write(tmp_path / "other.jsonl", [{"id": "x", "text": rows[1]["text"]}])
    _, stay, gone = cleaned(rows[:5], Deduplicate(against=(str(other),)))
    assert stay == ["a0", "a2", "a3", "a4"]
    assert gone["a1"]["about"] == "x of other.jsonl stays, Jaccard 1.000"


def test_what_a_benchmark_holds_goes(cleaned, rows, text, tmp_path):
    words = rows[3]["text"].split()
    items = [{"id": "in", "text": " ".join(words[5:20])}, {"id": "out", "text": text(999, 20)}, {"text": "too short"}]
    bench = write(tmp_path / "bench.jsonl", items)
    stage = Decontaminate(benchmarks=(str(bench),))
    ledger, _, gone = cleaned(rows, stage)
    assert set(gone) == {"a3"}
    assert gone["a3"]["reason"] == "contaminated: shares 13 words with bench.jsonl"
    (told,) = ledger.facts["benchmarks"]
    assert told["contaminated"] == {"in": 1.0}
    assert (told["items"], told["too_short"], told["rate"], told["rows"]) == (3, 1, 0.5, 1)
    write(bench, items[1:])
    assert not cleaned(rows, stage)[2]


def test_refusals(tmp_path):
    with pytest.raises(UserError, match=r"Deduplicate.threshold is 0.0; a similarity is above 0"):
        Deduplicate(threshold=0)
    with pytest.raises(UserError, match="no such file"):
        Deduplicate(against=("nowhere.jsonl",)).files()
    with pytest.raises(UserError, match=r"Decontaminate.benchmarks names no file"):
        Decontaminate(benchmarks=())
