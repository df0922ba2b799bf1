"""JSON lines as records: an id, a text, and the line itself, so that what is kept is kept byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nachim.data.read import JSON_LINES, NO_COLUMN, Report, Unfit, lines, row_of, text_of
from nachim.spec.error import UserError, nearest

Id = str | int | float


@dataclass(frozen=True)
class Record:
    """One line of JSON: its `id`, or "line 7" where it has none; its text as UTF-8; the line with its end."""

    id: Id
    text: bytes
    line: bytes


def records(path: Path, column: str, report: Report) -> Iterator[Record]:
    """The records of a file of JSON lines, in order; `report` counts them, and lines that are none.

    Raises UserError when no line has the text `column`.
    """
    seen = set[str]()
    for place, line in lines(path, path.name, report):
        try:
            row = row_of(line)
            if column not in row:
                seen.update(row)
                report.skip(NO_COLUMN, place)
                continue
            text = text_of(row[column])
        except Unfit as unfit:
            report.skip(str(unfit), place)
            continue
        report.documents += 1
        report.bytes += len(text)
        found = row.get("id")
        known = isinstance(found, str | int | float) and not isinstance(found, bool)
        yield Record(found if known else place.rpartition(", ")[2], text, line.rstrip(b"\r\n") + b"\n")
    if seen and not report.documents:
        raise UserError(f"no line of {path} has the text column {column!r}{nearest(column, seen)}")


def size_of(path: Path) -> int:
    """Bytes of a file of JSON lines. Raises UserError when it is missing, or its name says that it is none."""
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    if not path.name.endswith(JSON_LINES):
        raise UserError(f"{path} is not JSON lines: its name must end in {', '.join(JSON_LINES)}")
    return path.stat().st_size


def skipped(report: Report) -> dict[str, int]:
    """How many lines each reason cost."""
    return {reason: lost.count for reason, lost in report.skipped.items()}
