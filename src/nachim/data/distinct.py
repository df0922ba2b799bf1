"""A file of records without its duplicates: which went, for which that stays, and how alike the two are."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nachim.data.gathered import Gathered, Keep, digests
from nachim.data.minhash import signatures
from nachim.data.near import Clusters, cluster
from nachim.data.read import Report
from nachim.data.records import Id, Record, lines_to, records, size_of, skipped
from nachim.data.shingle import batches
from nachim.spec.disk import full_disk_is_an_error
from nachim.spec.error import UserError


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


def distinct_records(
    path: Path, out: Path, threshold: float, keep: Keep, column: str, tick: Callable[[str, float], None]
) -> Distinct:
    """Write the lines of `path` that are no duplicates to `out`, byte for byte and in their order.

    A record goes when its text is that of one that stays, or when the Jaccard similarity of their 5-word shingles is at
    least `threshold` (above 0, at most 1). Of two that are alike the `keep` one stays. `tick` hears the stage and the
    share of it done. Texts, signatures and keys stand beside `out` until all is decided. Raises UserError for bad
    input, and when the disk refuses; `out` is then as it was.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold is {threshold}; a similarity is above 0 and at most 1")
    if out.resolve() == path.resolve():
        raise UserError(f"--out is {path} itself; write to another file")
    size = size_of(path)
    report, folder = Report(), out.with_name(f".{out.name}.gathered")
    try:
        with full_disk_is_an_error(folder), Gathered(folder) as texts:
            read = records(path, column, report)
            _gather(read, texts, lambda done: tick("reading", min(1.0, done / max(1, size))))
            if not report.documents:
                raise UserError(f"no record in {path}" + "".join(f"; {note}" for note in report.notes()))
            found = cluster(texts, threshold, keep, lambda done: tick("comparing", done))
            _write(path, out, column, found)
            removed = _removed(texts, found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    notes = report.notes()
    if found.crowded:
        notes.append(f"{found.crowded:,} records met a crowd of look-alikes and were not compared with all of them")
    return Distinct(report.documents, report.documents - len(removed), removed, skipped(report), notes)


def _gather(read: Iterator[Record], texts: Gathered, tick: Callable[[int], None]) -> None:
    """Every record into `texts`; `tick` hears the bytes done."""
    done = 0
    for batch in batches(read, lambda record: len(record.text)):
        some = [record.text for record in batch]
        ids = [record.id for record in batch]
        texts.add(some, ids, signatures(some), digests(some), np.zeros(len(some)))
        done += sum(map(len, some))
        tick(done)
    texts.seal()


def _write(path: Path, out: Path, column: str, found: Clusters) -> None:
    """Write the lines that stay. Raises UserError when `path` is not what it was."""
    kept = found.kept
    count = 0
    with lines_to(out) as write:
        for count, record in enumerate(records(path, column, Report()), start=1):
            if count > len(kept):
                break
            if kept[count - 1]:
                write(record.line)
        if count != len(kept):
            raise UserError(f"{path} changed while it was read: run the same command again")


def _removed(texts: Gathered, found: Clusters) -> list[Removal]:
    """Who went, and for whom."""
    gone = np.flatnonzero(~found.kept).tolist()
    return [Removal(texts.id(i), texts.id(int(found.keeper[i])), round(float(found.similarity[i]), 6)) for i in gone]
