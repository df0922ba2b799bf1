"""Documents as they lie about to shards of rows: what every pipeline begins with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nachim.data.ledger import Ledger
from nachim.data.read import Report
from nachim.data.remote import stamp
from nachim.data.rows import pieces_of, rows_in, rows_of
from nachim.data.shards import SUFFIX, Shard, digest, done, write_shard
from nachim.data.source import Source, open_source
from nachim.data.stage import Row
from nachim.data.work import Task
from nachim.spec.data import Corpus, Stdlib
from nachim.spec.disk import write_text
from nachim.spec.part import Part

VERSION = 1
"""Raise it when the same files come to other rows."""


@dataclass(frozen=True, kw_only=True)
class Origin(Part):
    """Where documents come from: a corpus, and what the card says of it. `name` stands in each row as its `source`.

    `columns` of JSON lines and parquet are kept beside `id` and the text. Nothing is held out here: the corpus'
    `validation_bytes` and `near_duplicates` say nothing to a pipeline.
    """

    corpus: Corpus = Stdlib()
    name: str = ""
    licence: str = "not stated"
    columns: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What its rows carry as their `source`."""
        return self.name or type(self.corpus).__name__.lower()


@dataclass(frozen=True)
class Read(Task):
    """Files of an origin (`stage` is its JSON) as shards ``TARGET-000``, ``TARGET-001``, ...; `source` is their base.

    Without files the origin is read as a whole. A list of the shards, written last, says that it is done.
    """

    files: tuple[str, ...]
    pieces: bool
    shard_bytes: int

    def known(self) -> bool:
        """Whether every shard stands there."""
        return self.shards() is not None

    def shards(self) -> list[Shard] | None:
        """What was made, or None while some of it is not."""
        try:
            told: dict[str, Any] = json.loads(self.target.read_text(encoding="utf-8"))
            count = told["shards"] if told["key"] == self.key else 0
        except (OSError, ValueError, KeyError, TypeError):
            return None
        found = [done(self.shard(number), self.part(number)) for number in range(count)]
        return None if not found or None in found else [shard for shard in found if shard]

    def shard(self, number: int) -> Path:
        """Where a shard stands."""
        return self.target.parent / "shards" / f"{self.target.stem}-{number:03}{SUFFIX}"

    def part(self, number: int) -> str:
        """The key of a shard."""
        return digest(self.key, number)

    def carry_out(self) -> None:
        """Read it; a shard is written as soon as it is full."""
        origin, report, count = Origin.from_json(json.loads(self.stage)), Report(), 0
        held, size, ledger = list[Row](), 0, Ledger()
        for row in self._rows(origin, report):
            row["source"] = origin.title
            length = len(row["text"].encode())
            ledger.keep(row, length)
            held.append(row)
            size += length
            if size >= self.shard_bytes:
                write_shard(self.shard(count), self.part(count), held, ledger)
                held, size, ledger, count = [], 0, Ledger(), count + 1
        for reason, lost in report.skipped.items():
            ledger.lose(reason, lost.count, lost.first)
        if ledger.came.rows or not count:
            write_shard(self.shard(count), self.part(count), held, ledger)
            count += 1
        write_text(self.target, json.dumps({"key": self.key, "shards": count}) + "\n")

    def _rows(self, origin: Origin, report: Report) -> Iterator[Row]:
        text = getattr(origin.corpus, "text_column", "text")
        if not self.files:
            source = open_source(origin.corpus)
            assert source.tables is not None  # what has no files has tables
            yield from rows_in(source.tables(origin.columns), source.name, text, report)
        for file in self.files:
            path = self.source / file
            if self.pieces:
                yield from pieces_of(path, file, report)
            else:
                yield from rows_of(path, file, text, origin.columns, report)


def readings(origins: Sequence[Origin], folder: Path, shard_bytes: int) -> list[Read]:
    """The tasks that read `origins` into `folder`. Raises UserError when one is not there.

    Small files are read together, so that a shard is about as large as it may be.
    """
    return [task for number, origin in enumerate(origins) for task in _readings(number, origin, folder, shard_bytes)]


def _readings(number: int, origin: Origin, folder: Path, shard_bytes: int) -> Iterator[Read]:
    source = open_source(origin.corpus)
    told = json.dumps({**origin.to_json(), "licence": ""}, sort_keys=True)
    for count, files in enumerate(_groups(source, shard_bytes)):
        stamps = [[path.relative_to(source.base).as_posix(), size, time] for path, size, time in files]
        names = () if source.tables else tuple(str(name) for name, _, _ in stamps)
        key = digest(VERSION, told, stamps, source.pieces, shard_bytes)
        target = folder / f"{number:02}-{count:05}.json"
        yield Read(told, source.base, target, key, names, source.pieces, shard_bytes)


def _groups(source: Source, shard_bytes: int) -> Iterator[list[tuple[Path, int, int]]]:
    """Files that are read together, with their stamps; of tables the files that say whether they changed."""
    held: list[tuple[Path, int, int]] = []
    total = 0
    for path in source.files:
        size, time = stamp(path)
        held.append((path, size, time))
        total += size
        if not source.tables and total >= shard_bytes:
            yield held
            held, total = [], 0
    if held or not source.files:
        yield held
