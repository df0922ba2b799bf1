"""Kills lose at most a shard: a build that is stopped at any write, or loses workers, comes to the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from nachim.data import pool
from nachim.data.deduplicate import Deduplicate
from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline, build
from nachim.data.stage import PerRow
from nachim.spec import Files, UserError


class Kill(BaseException):
    """Ends a build from within, as a signal would from without."""


@dataclass(frozen=True, kw_only=True)
class Deadly(PerRow):
    """Ends the process that works on it, the first `times` times."""

    marks: str
    times: int = 1

    def one(self, row):
        if row["id"] == "2.5":
            tries = len(os.listdir(self.marks))
            if tries < self.times:
                Path(self.marks, str(tries)).touch()
                os._exit(9)
        return row


@pytest.fixture
def origin(tmp_path, text):
    """Five files of twelve documents, every fourth of them a near duplicate of the one before."""
    place = tmp_path / "in"
    place.mkdir()
    for part in range(5):
        texts = [text(100 * part + i - (i % 4 == 3), 40) for i in range(12)]
        rows = [{"id": f"{part}.{i}", "text": one} for i, one in enumerate(texts)]
        (place / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Origin(corpus=Files(path=str(place)))


def bytes_in(out):
    return {path.name: path.read_bytes() for path in [*sorted((out / "shards").iterdir()), out / "ledger.json"]}


def test_twenty_kills_do_not_show(origin, tmp_path, monkeypatch):
    pipeline = Pipeline(origins=(origin,), stages=(Deduplicate(),), shard_bytes=1500)
    build(pipeline, tmp_path / "calm")
    chance, real, left = random.Random(7), os.replace, [0]

    def replace(source, target):
        left[0] -= 1
        if left[0] == 0:
            if chance.random() < 0.5:
                real(source, target)
            raise Kill
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    kills, out = 0, tmp_path / "out"
    while kills < 20:
        left[0] = chance.randrange(1, 12)
        with contextlib.suppress(Kill):
            build(pipeline, out)
            # it came to its end: begin again from what a build has left
            for path in chance.sample(sorted(out.glob("stages/**/*.json*")), 20):
                path.unlink()
            continue
        kills += 1
        assert not (out / "ledger.json").exists() or bytes_in(out) == bytes_in(tmp_path / "calm")
    left[0] = 0
    build(pipeline, out)
    assert bytes_in(out) == bytes_in(tmp_path / "calm")


def test_workers_and_one_that_dies_do_not_show(origin, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    pipeline = Pipeline(origins=(origin,), stages=(Deduplicate(), Deadly(marks=str(marks))), shard_bytes=1500)
    build(pipeline, tmp_path / "two", workers=2)
    assert len(os.listdir(marks)) == 1
    build(pipeline, tmp_path / "one")
    assert bytes_in(tmp_path / "one") == bytes_in(tmp_path / "two")


def test_workers_that_die_time_and_again_are_one_sentence(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "FRUITLESS", 1)
    marks = tmp_path / "marks"
    marks.mkdir()
    pipeline = Pipeline(origins=(origin,), stages=(Deadly(marks=str(marks), times=99),), shard_bytes=10**6)
    with pytest.raises(UserError, match=r"workers died 1 times in turn over 00-00000-000.jsonl.zst"):
        build(pipeline, tmp_path / "out", workers=2)
