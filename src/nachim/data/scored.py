"""Records through stages that score them, one file in and one out: to choose bounds by before a pipeline has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nachim.data.ledger import GIVEN, Ledger, values_of
from nachim.data.quality import Rules
from nachim.data.read import Report, row_of
from nachim.data.records import Record, lines_to, records, size_of
from nachim.data.resample import Resample
from nachim.data.rules import broken
from nachim.data.shingle import batches
from nachim.data.stage import Drop, PerRow, Row, Shelf
from nachim.spec.error import UserError


@dataclass
class Passed:
    """What became of the records of a file: a ledger, in which those that break a bound are dropped under the first one
    they break, and how many break each rule."""

    ledger: Ledger = field(default_factory=Ledger)
    broken: dict[str, int] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    """Of every number that the stages wrote."""
    report: Report = field(default_factory=Report)


def passed(
    source: Path, stages: Sequence[PerRow], column: str, out: Path | None, tick: Callable[[float], None]
) -> Passed:
    """Every record of `source` (JSON lines) through `stages`; `out` takes all of them, with what the stages wrote.

    A record that a stage drops goes on to the next stage all the same. `tick` hears the share read. Raises UserError
    for bad input, and when the disk refuses.
    """
    if out is not None:
        _refuse_reading(out, source)
    found, size = Passed(), max(1, size_of(source))
    rules = [rule for stage in stages if isinstance(stage, Rules) for rule in stage.rules]
    found.broken = {rule.name: 0 for rule in rules}
    with lines_to(out) as write:
        for batch in batches(records(source, column, found.report), lambda record: len(record.text)):
            for record, row in zip(batch, _through(batch, stages, found.ledger), strict=True):
                for name in broken(rules, row):
                    found.broken[name] += 1
                for name in row.keys() - GIVEN:
                    if isinstance(row[name], int | float):
                        found.sums[name] = found.sums.get(name, 0) + row[name]
                write(_line(record, row, column))
            tick(min(1.0, found.report.bytes / size))
    if not found.report.documents:
        raise UserError(f"no record in {source}" + "".join(f"; {note}" for note in found.report.notes()))
    return found


def _through(batch: Sequence[Record], stages: Sequence[PerRow], ledger: Ledger) -> list[Row]:
    """The rows of records as the stages leave them, counted in `ledger`."""
    rows: list[Row] = [{"id": record.id, "text": record.text.decode(), "source": ""} for record in batch]
    first: list[Drop | None] = [None] * len(rows)
    for stage in stages:
        outcomes = stage.many(rows)
        drops = [one if isinstance(one, Drop) else None for one in outcomes]
        first = [one or drop for one, drop in zip(first, drops, strict=True)]
        rows = [(one.row or row) if isinstance(one, Drop) else one for one, row in zip(outcomes, rows, strict=True)]
    for record, row, one in zip(batch, rows, first, strict=True):
        new = dict(values_of(row))
        if one is None:
            ledger.keep(row, len(record.text), new)
        else:
            ledger.drop(Drop(one.reason, one.about, row), row, len(record.text), new)
    return rows


def _line(record: Record, row: Row, column: str) -> bytes:
    """The record's own fields, its text as the stages left it, and what they wrote."""
    new = {name: value for name, value in row.items() if name not in GIVEN}
    told = {**row_of(record.line), column: row["text"], **new}
    return json.dumps(told, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _refuse_reading(out: Path, *sources: Path) -> None:
    if out.resolve() in [source.resolve() for source in sources]:
        raise UserError(f"--out is {out}, which is read; write to another file")


@dataclass(frozen=True)
class Drawn:
    """What importance resampling drew: how many records there are, could be drawn and were; log weights in nats."""

    records: int
    candidates: int
    drawn: int
    mean_weight: float
    mean_weight_drawn: float
    notes: list[str]


def resampled(stage: Resample, source: Path, out: Path, tick: Callable[[float], None]) -> Drawn:
    """Draw from the records of `source` as `stage` says; `out` takes those drawn, byte for byte, in their order.

    Features take some two bytes for each byte of text. Raises UserError for bad input, and when the disk refuses.
    """
    _refuse_reading(out, source, *stage.files())
    report, size, summaries = Report(), max(1, size_of(source)), []
    for batch in batches(records(source, stage.text_column, report), lambda record: len(record.text)):
        summaries.append(stage.part([{"text": record.text.decode()} for record in batch]))
        tick(min(1.0, report.bytes / size))
    if not summaries:
        raise UserError(f"no record in {source}" + "".join(f"; {note}" for note in report.notes()))
    shelf = Shelf(len(summaries), lambda i: [], lambda i: summaries[i], out.parent, lambda done: None)
    joined = stage.join(shelf)
    shards = list(joined.decisions)
    weights = np.array([weight for shard, _ in shards for weight in shard])
    chosen = np.array([drawn for _, shard in shards for drawn in shard])
    with lines_to(out) as write:
        for record, drawn in zip(records(source, stage.text_column, Report()), chosen, strict=True):
            if drawn:
                write(record.line)
    means = float(weights.mean()), float(weights[chosen].mean())
    return Drawn(len(chosen), joined.facts["candidates"], int(chosen.sum()), *means, report.notes())
