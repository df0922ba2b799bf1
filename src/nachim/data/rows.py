"""Files to rows: what `read` and `records` make bytes of, with an id and the columns that are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nachim.data.read import (
    JSON_LINES,
    PARQUET,
    UNREADABLE,
    Report,
    Unfit,
    arrow_source,
    first_line,
    objects,
    read_pieces,
    read_text,
    text_of,
)
from nachim.data.stage import Row
from nachim.data.warc import WARC, read_warc
from nachim.spec.error import UserError, nearest

NUL = "holds NUL bytes"


def rows_of(path: Path, name: str, text: str, columns: Sequence[str], report: Report) -> Iterator[Row]:
    """The rows of a file, in order; `text` is the column with the text, `columns` are kept beside it and `id`.

    Raises UserError when no row has the text column.
    """
    if path.name.endswith(JSON_LINES):
        return _json_lines(path, name, text, columns, report)
    if path.name.endswith(PARQUET):
        return _parquet(path, name, text, columns, report)
    if path.name.endswith(WARC):
        return _pages(path, name, report)
    return ({"id": name, "text": raw.decode()} for raw in _without_nul(read_text(path, name, report), name, report))


def pieces_of(path: Path, name: str, report: Report) -> Iterator[Row]:
    """One long text as the rows that `read_pieces` cuts it into."""
    pieces = _without_nul(read_pieces(path, name, report), name, report)
    return ({"id": f"{name}, piece {count}", "text": raw.decode()} for count, raw in enumerate(pieces))


def rows_in(tables: Iterable[pa.RecordBatch | pa.Table], name: str, text: str, report: Report) -> Iterator[Row]:
    """The rows of Arrow tables that hold the columns wanted."""
    number = 0
    for table in tables:
        found = {column: table.column(column) for column in table.schema.names}
        if pa.types.is_string(found[text].type) or pa.types.is_large_string(found[text].type):
            # one row that is not UTF-8 would make to_pylist refuse the whole batch
            found[text] = found[text].cast(pa.large_binary())
        others = [(column, values.to_pylist()) for column, values in found.items() if column != text]
        for i, value in enumerate(found[text].to_pylist()):
            given = {column: values[i] for column, values in others}
            yield from _row(value, given, f"{name}, row {number}", report)
            number += 1


def _pages(path: Path, name: str, report: Report) -> Iterator[Row]:
    for page in read_warc(path, name, report):
        for text in _without_nul([page.text], page.id, report):
            yield {"id": page.id, "text": text.decode(), "url": page.url}


def _json_lines(path: Path, name: str, text: str, columns: Sequence[str], report: Report) -> Iterator[Row]:
    for place, _, row in objects(path, name, text, report):
        yield from _row(row[text], {key: row[key] for key in ("id", *columns) if key in row}, place, report)


def _parquet(path: Path, name: str, text: str, columns: Sequence[str], report: Report) -> Iterator[Row]:
    try:
        with pq.ParquetFile(arrow_source(path)) as file:
            known = file.schema_arrow.names
            if text not in known:
                raise UserError(f"{path} has no text column {text!r}{nearest(text, known)}")
            wanted = [column for column in dict.fromkeys((text, "id", *columns)) if column in known]
            yield from rows_in(file.iter_batches(1024, columns=wanted), name, text, report)
    except (OSError, pa.ArrowException) as error:
        report.skip(UNREADABLE, f"{name}: {first_line(error)}")


def _row(value: object, given: dict[str, Any], place: str, report: Report) -> Iterator[Row]:
    try:
        whole = text_of(value)
    except Unfit as unfit:
        report.skip(str(unfit), place)
        return
    for raw in _without_nul([whole], place, report):
        report.documents += 1
        report.bytes += len(raw)
        found = given.pop("id", None)
        known = isinstance(found, str | int | float) and not isinstance(found, bool) and found == found
        yield {"id": found if known else place, "text": raw.decode(), **{k: _plain(v) for k, v in given.items()}}


def _without_nul(texts: Iterable[bytes], place: str, report: Report) -> Iterator[bytes]:
    """Texts less those with a NUL byte, which no text has: they are binary, or of another encoding."""
    for raw in texts:
        if b"\0" in raw:
            report.skip(NUL, place)
        else:
            yield raw


def _plain(value: object) -> object:
    """`value` as JSON can hold it: what it cannot is written out."""
    if isinstance(value, float) and value != value:
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
