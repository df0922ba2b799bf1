"""Files to documents: plain text, JSON lines and parquet. What cannot be a document is counted and named."""

from __future__ import annotations

import contextlib
import io
import json
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

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
LONGEST = 1 << 26
"""Bytes that a line or a text may have: what is longer is no document, and must not fill the memory."""
TOO_LONG = f"longer than {LONGEST >> 20} MiB"


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
    try:
        if path.stat().st_size > LONGEST:
            report.skip(TOO_LONG, name)
            return
        raw = path.read_bytes()
    except OSError as error:
        report.skip(UNREADABLE, f"{name}: {error.strerror or first_line(error)}")
        return
    yield from _document(raw, name, report)


def read_pieces(path: Path, name: str, report: Report) -> Iterator[bytes]:
    """One long text as documents of about `PIECE_BYTES`, cut at blank lines, or else at line ends.

    A corpus that is a single document could not be split into train and validation.
    """
    try:
        with path.open("rb") as file, _mapped(file) as raw:
            start, size = 0, len(raw)
            while start < size:
                end, where = _cut(raw, start + PIECE_BYTES), f"{name}, byte {start}"
                if end - start > LONGEST:
                    report.skip(TOO_LONG, where)
                else:
                    yield from _document(raw[start:end], where, report)
                start = end
    except OSError as error:
        report.skip(UNREADABLE, f"{name}: {error.strerror or first_line(error)}")


def read_json_lines(path: Path, name: str, column: str, report: Report) -> Iterator[bytes]:
    """The text column of each line; blank lines are no documents. The suffix says how it is compressed.

    Raises UserError when the file has objects and none of them has the column.
    """
    for place, _, row in objects(path, name, column, report):
        yield from _document(row[column], place, report)


def objects(path: Path, name: str, column: str, report: Report) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Lines that are objects with the `column`: where each stands, the line and the object. Others are counted.

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
            yield place, line, row
        else:
            seen.update(row)
            report.skip(NO_COLUMN, place)
    if seen and not found:
        raise UserError(f"no line of {path} has the text column {column!r}{nearest(column, seen)}")


def read_parquet(path: Path, name: str, column: str, report: Report) -> Iterator[bytes]:
    """The text column of each row, read batch by batch. Raises UserError when the schema lacks the column."""
    try:
        with pq.ParquetFile(arrow_source(path)) as file:
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


def _mapped(file: IO[bytes]) -> Any:
    """The bytes of an open file, mapped where it is one of this machine's and has any."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return contextlib.nullcontext(file.read())


def lines(path: Path, name: str, report: Report) -> Iterator[tuple[str, bytes]]:
    """Place and bytes of every line that is not blank; a file that ends in damage is reported, and ends there.

    A line that is too long is passed over piece by piece.
    """
    number = 0
    try:
        with pa.input_stream(arrow_source(path), compression=_compression(path.name)) as stream:
            reader = io.BufferedReader(stream)
            while line := reader.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST:
                    report.skip(TOO_LONG, f"{name}, line {number}")
                    while line and not line.endswith(b"\n"):
                        line = reader.readline(LONGEST)
                elif line.strip():
                    yield f"{name}, line {number}", line
    except (OSError, pa.ArrowException) as error:
        report.skip(UNREADABLE, f"{name}, after line {number}: {first_line(error)}")


def arrow_source(path: Path) -> Any:
    """What Arrow reads a file from: its name on this machine, an open file elsewhere."""
    return str(path) if isinstance(path, Path) else path.open("rb")


def _compression(name: str) -> str | None:
    return "gzip" if name.endswith(".gz") else "zstd" if name.endswith(".zst") else None


def _cut(raw: Any, at: int) -> int:
    for end_of in (b"\n\n", b"\n"):
        found = raw.find(end_of, at, at + PIECE_BYTES)
        if found >= 0:
            return found + len(end_of)
    return raw.find(b"\n", at) + 1 or len(raw)


def first_line(error: Exception) -> str:
    """What a library says, without what it adds below."""
    return (str(error).splitlines() or [type(error).__name__])[0]
