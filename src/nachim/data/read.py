"""Files to documents: plain text, JSON lines and parquet. What cannot be a document is counted and named."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nachim.spec.error import UserError, nearest

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET = (".parquet",)
PIECE_BYTES = 8192

NOT_UTF8 = "not UTF-8"
NOT_TEXT = "not a string"
EMPTY = "empty"
BROKEN_LINE = "broken JSON line"
NOT_OBJECT = "JSON line that is not an object"
NO_COLUMN = "JSON line without the text column"
UNREADABLE = "unreadable file"


@dataclass
class Skipped:
    """How many documents one reason cost, and where the first of them stands."""

    count: int
    first: str


@dataclass
class Report:
    """What was read: `documents` and their UTF-8 `bytes`; and what was not, by reason."""

    documents: int = 0
    bytes: int = 0
    skipped: dict[str, Skipped] = field(default_factory=dict)

    def skip(self, reason: str, where: str) -> None:
        """Count one document lost to `reason`; the first one's place is kept."""
        self.skipped.setdefault(reason, Skipped(0, where)).count += 1

    def notes(self) -> list[str]:
        """One sentence a reason."""
        return [f"{lost.count:,} left out: {reason} (first: {lost.first})" for reason, lost in self.skipped.items()]


def read_text(path: Path, name: str, report: Report) -> Iterator[bytes]:
    """The whole file as one document. `name` is what the report calls it."""
    for raw in _content(path, name, report):
        yield from _document(raw, name, report)


def read_pieces(path: Path, name: str, report: Report) -> Iterator[bytes]:
    """One long text as documents of about `PIECE_BYTES`, cut at blank lines, or else at line ends.

    A corpus that is a single document could not be split into train and validation.
    """
    for raw in _content(path, name, report):
        start = 0
        while start < len(raw):
            end = _cut(raw, start + PIECE_BYTES)
            yield from _document(raw[start:end], f"{name}, byte {start}", report)
            start = end


def read_json_lines(path: Path, name: str, column: str, report: Report) -> Iterator[bytes]:
    """The text column of each line; blank lines are no documents. The suffix says how it is compressed.

    Raises UserError when the file has objects and none of them has the column.
    """
    found, seen = False, set[str]()
    for place, line in lines(path, name, report):
        try:
            row = row_of(line)
        except Unfit as unfit:
            report.skip(str(unfit), place)
            continue
        if column in row:
            found = True
            yield from _document(row[column], place, report)
        else:
            seen.update(row)
            report.skip(NO_COLUMN, place)
    if seen and not found:
        raise UserError(f"no line of {path} has the text column {column!r}{nearest(column, seen)}")


def read_parquet(path: Path, name: str, column: str, report: Report) -> Iterator[bytes]:
    """The text column of each row, read batch by batch. Raises UserError when the schema lacks the column."""
    try:
        with pq.ParquetFile(path) as file:
            known = file.schema_arrow.names
            if column not in known:
                raise UserError(f"{path} has no text column {column!r}{nearest(column, known)}")
            yield from read_tables(file.iter_batches(1024, columns=[column]), name, column, report)
    except (OSError, pa.ArrowException) as error:
        report.skip(UNREADABLE, f"{name}: {first_line(error)}")


def read_tables(tables: Iterable[pa.RecordBatch | pa.Table], name: str, column: str, report: Report) -> Iterator[bytes]:
    """The text column of Arrow tables, in order; a row's place is ``name, row 7``."""
    row = 0
    for table in tables:
        values = table.column(column)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            # One row that is not UTF-8 would make to_pylist refuse the whole batch.
            values = values.cast(pa.large_binary())
        for value in values.to_pylist():
            yield from _document(value, f"{name}, row {row}", report)
            row += 1


class Unfit(ValueError):
    """Why something is no document; `str()` is one of the reasons above."""


def _document(value: object, where: str, report: Report) -> Iterator[bytes]:
    try:
        raw = text_of(value)
    except Unfit as unfit:
        report.skip(str(unfit), where)
        return
    report.documents += 1
    report.bytes += len(raw)
    yield raw


def text_of(value: object) -> bytes:
    """A document's text as UTF-8. Raises Unfit when it is none."""
    try:
        raw = value.encode() if isinstance(value, str) else value
        if not isinstance(raw, bytes):
            raise Unfit(NOT_TEXT)
        raw.decode()
    except UnicodeError:
        raise Unfit(NOT_UTF8) from None
    if not raw.strip():
        raise Unfit(EMPTY)
    return raw


def row_of(line: bytes) -> dict[str, object]:
    """The object on a line of JSON. Raises Unfit when there is none."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Unfit(NOT_UTF8) from None
    except (ValueError, RecursionError):
        raise Unfit(BROKEN_LINE) from None
    if not isinstance(row, dict):
        raise Unfit(NOT_OBJECT)
    return row


def _content(path: Path, name: str, report: Report) -> Iterator[bytes]:
    try:
        yield path.read_bytes()
    except OSError as error:
        report.skip(UNREADABLE, f"{name}: {error.strerror}")


def lines(path: Path, name: str, report: Report) -> Iterator[tuple[str, bytes]]:
    """Place and bytes of every line that is not blank; a file that ends in damage is reported, and ends there."""
    number = 0
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            for number, line in enumerate(io.BufferedReader(stream), start=1):
                if line.strip():
                    yield f"{name}, line {number}", line
    except (OSError, pa.ArrowException) as error:
        report.skip(UNREADABLE, f"{name}, after line {number}: {first_line(error)}")


def _cut(raw: bytes, at: int) -> int:
    for end_of in (b"\n\n", b"\n"):
        found = raw.find(end_of, at, at + PIECE_BYTES)
        if found >= 0:
            return found + len(end_of)
    return raw.find(b"\n", at) + 1 or len(raw)


def first_line(error: Exception) -> str:
    """What a library says, without what it adds below."""
    return (str(error).splitlines() or [type(error).__name__])[0]
