"""Shards: files of rows, one JSON object a line, compressed with zstd, each with a note of what it was made from.

A shard's note is written after it, and both appear whole or not at all: what a killed process leaves is either done,
and known by its key, or is done again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from nachim.data.ledger import Count, Ledger
from nachim.data.stage import Row
from nachim.spec.disk import read_json, replacing, write_text
from nachim.spec.error import UserError

SUFFIX = ".jsonl.zst"
NOTE = ".json"
LEVEL = 3


@dataclass(frozen=True)
class Shard:
    """A shard that is done: where it stands, the SHA-256 of its bytes, and what stayed of the rows."""

    path: Path
    sha256: str
    kept: Count

    @property
    def ledger(self) -> Ledger:
        """What became of the rows, read from the note each time: of many shards it would fill the memory."""
        return Ledger.from_json(read_json(note_of(self.path))["ledger"])


def encoded(rows: Iterable[Row]) -> bytes:
    """Rows as JSON lines. Raises ValueError for what JSON has no word for, such as a number that is none."""
    out = io.BytesIO()
    for row in rows:
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        # half of a surrogate pair has no UTF-8, and `\\ud800` is how JSON writes it
        out.write(line.encode("utf-8", "backslashreplace") + b"\n")
    return out.getvalue()


def write_shard(path: Path, key: str, rows: Iterable[Row], ledger: Ledger) -> Shard:
    """Write rows to `path` and then their note. Raises UserError when the disk refuses."""
    raw = write_lines(path, rows)
    note = {"key": key, "sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw), "ledger": ledger.to_json()}
    write_text(note_of(path), json.dumps(note, sort_keys=True) + "\n")
    return Shard(path, note["sha256"], ledger.kept)


def write_lines(path: Path, rows: Iterable[Row]) -> bytes:
    """Write rows to `path`, without a note, and return the bytes there. Raises UserError when the disk refuses."""
    raw = pa.Codec("zstd", LEVEL).compress(encoded(rows), asbytes=True)
    with replacing(path) as temporary:
        temporary.write_bytes(raw)
    return raw


def read_shard(path: Path) -> list[Row]:
    """The rows of a shard. Raises UserError when it cannot be read."""
    try:
        with pa.input_stream(str(path), compression="zstd") as stream:
            return [json.loads(line) for line in io.BytesIO(stream.read())]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and run the same command again") from error


def done(path: Path, key: str) -> Shard | None:
    """The shard at `path`, if it was made from what `key` stands for and is whole."""
    try:
        note: dict[str, Any] = json.loads(note_of(path).read_text(encoding="utf-8"))
        if note["key"] != key or path.stat().st_size != note["bytes"]:
            return None
        return Shard(path, note["sha256"], Count(**note["ledger"]["kept"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_of(path: Path) -> Path:
    """Where the note of the shard at `path` stands."""
    return path.with_name(path.name.removesuffix(SUFFIX) + NOTE)


def dropped_of(path: Path) -> Path:
    """Where the rows that went are named, beside the folder of the shard at `path`: id, reason and what was said."""
    return path.parent.parent / "dropped" / path.name


def digest(*values: object) -> str:
    """SHA-256 (hex) of JSON values: the key of what is made from them."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes. Raises UserError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def clear_others(folder: Path, keep: Iterable[str]) -> None:
    """Remove the files in `folder` whose names are not among `keep`: what an earlier build left."""
    names = set(keep)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file() and path.name not in names:
            path.unlink(missing_ok=True)
