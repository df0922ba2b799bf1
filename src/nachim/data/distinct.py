"""A file of records without its duplicates: which went, for which that stays, and how alike the two are."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from nachim.data.minhash import VALUES, Signatures, signatures
from nachim.data.near import Clusters, cluster
from nachim.data.read import Report
from nachim.data.records import Id, Record, lines_to, records, size_of, skipped
from nachim.data.shingle import batches
from nachim.spec.disk import full_disk_is_an_error
from nachim.spec.error import UserError

DIGEST_BYTES = 16
Keep = Literal["longest", "first"]


@dataclass(frozen=True)
class Removal:
    """Record `id` went for `keeper`, which stays; `jaccard` is the similarity of their 5-word shingles."""

    id: Id
    keeper: Id
    jaccard: float


@dataclass(frozen=True)
class Distinct:
    """What became of a file: every record of it was kept, removed, or no record (`skipped`, by reason)."""

    read: int
    kept: int
    removed: list[Removal]
    skipped: dict[str, int]
    notes: list[str]

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Texts:
    """All texts in one file on disk, and what is known of each."""

    raw: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint64]
    found: Signatures

    def __getitem__(self, i: int) -> bytes:
        return self.raw[self.offsets[i] : self.offsets[i + 1]].tobytes()


def distinct_records(
    path: Path, out: Path, threshold: float, keep: Keep, column: str, tick: Callable[[str, float], None]
) -> Distinct:
    """Write the lines of `path` that are no duplicates to `out`, byte for byte and in their order.

    A record goes when its text is that of one that stays, or when the Jaccard similarity of their 5-word shingles is at
    least `threshold` (above 0, at most 1). Of two that are alike the `keep` one stays. `tick` hears the stage and the
    share of it done. Raises UserError for bad input, and when the disk refuses; `out` is then as it was.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold is {threshold}; a similarity is above 0 and at most 1")
    if out.resolve() == path.resolve():
        raise UserError(f"--out is {path} itself; write to another file")
    size = size_of(path)
    report, spool = Report(), out.with_name(f".{out.name}.texts")
    try:
        with full_disk_is_an_error(spool):
            spool.parent.mkdir(parents=True, exist_ok=True)
            read = records(path, column, report)
            texts = _spooled(read, spool, lambda done: tick("reading", min(1.0, done / max(1, size))))
        if not report.documents:
            raise UserError(f"no record in {path}" + "".join(f"; {note}" for note in report.notes()))
        found = _clusters(texts, threshold, keep, lambda done: tick("comparing", done))
        removed = _written(path, out, column, found)
    finally:
        spool.unlink(missing_ok=True)
    notes = report.notes()
    if found.crowded:
        notes.append(f"{found.crowded:,} records met a crowd of look-alikes and were not compared with all of them")
    return Distinct(report.documents, report.documents - len(removed), removed, skipped(report), notes)


def _spooled(read: Iterator[Record], spool: Path, tick: Callable[[int], None]) -> _Texts:
    """Every text in the file `spool`, with its signature; `tick` hears the bytes done."""
    offsets, digests, found = array("q", [0]), bytearray(), [np.empty((0, VALUES), np.uint32)]
    with open(spool, "wb") as file:
        for batch in batches(read, lambda record: len(record.text)):
            for record in batch:
                file.write(record.text)
                offsets.append(offsets[-1] + len(record.text))
                digests += hashlib.sha256(record.text).digest()[:DIGEST_BYTES]
            found.append(signatures([record.text for record in batch]))
            tick(offsets[-1])
    raw = np.memmap(spool, dtype=np.uint8, mode="r") if offsets[-1] else np.empty(0, np.uint8)
    words = np.frombuffer(digests, dtype=np.uint64).reshape(-1, DIGEST_BYTES // 8)
    return _Texts(raw, np.array(offsets, dtype=np.int64), words, np.concatenate(found))


def _clusters(texts: _Texts, threshold: float, keep: Keep, tick: Callable[[float], None]) -> Clusters:
    count = len(texts.digests)
    sizes = np.diff(texts.offsets) if keep == "longest" else np.zeros(count, np.int64)
    rank = np.empty(count, np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(count)
    return cluster(texts.found, texts.__getitem__, rank, threshold, same(texts.digests, rank), tick)


def same(digests: npt.NDArray[np.uint64], rank: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each text the preferred one of those that equal it."""
    order = np.lexsort((rank, *digests.T))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (digests[order][1:] != digests[order][:-1]).any(axis=1)
    keeper = np.empty(len(order), np.int64)
    keeper[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return keeper


def _written(path: Path, out: Path, column: str, found: Clusters) -> list[Removal]:
    """Write the lines that stay; who went, and for whom. Raises UserError when `path` is not what it was."""
    kept = found.kept
    named = set(found.keeper[~kept].tolist())
    ids: dict[int, Id] = {}
    count = 0
    with lines_to(out) as write:
        for count, record in enumerate(records(path, column, Report()), start=1):
            if count > len(kept):
                break
            if kept[count - 1]:
                write(record.line)
            if not kept[count - 1] or count - 1 in named:
                ids[count - 1] = record.id
        if count != len(kept):
            raise UserError(f"{path} changed while it was read: run the same command again")
    gone = np.flatnonzero(~kept).tolist()
    return [Removal(ids[i], ids[int(found.keeper[i])], round(float(found.similarity[i]), 6)) for i in gone]
