"""JSON lines as records: an id, a text, and the line itself, so that what is kept is kept byte for byte."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from nachim.data.read import JSON_LINES, Report, Unfit, objects, text_of
from nachim.spec.disk import replacing
from nachim.spec.error import UserError

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
    for place, line, row in objects(path, path.name, column, report):
        try:
            text = text_of(row[column])
        except Unfit as unfit:
            report.skip(str(unfit), place)
            continue
        report.documents += 1
        report.bytes += len(text)
        found = row.get("id")
        known = isinstance(found, str | int | float) and not isinstance(found, bool)
        yield Record(found if known else place.rpartition(", ")[2], text, line.rstrip(b"\r\n") + b"\n")


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


@contextlib.contextmanager
def lines_to(path: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Writes lines to `path`, compressed as its suffix says, which appears when the block ends; or nowhere."""
    if path is None:
        yield lambda line: None
        return
    with replacing(path) as temporary, _opened(temporary, path.name) as file:
        yield file.write


def _opened(path: Path, name: str) -> IO[bytes]:
    if name.endswith(".gz"):
        return gzip.GzipFile(path, "wb", mtime=0)
    if name.endswith(".zst"):
        return pa.CompressedOutputStream(str(path), "zstd")
    return open(path, "wb")
