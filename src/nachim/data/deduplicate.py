"""Deduplication as a stage: of all rows together, and against files of others."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nachim.data.gathered import Gathered, Keep, digests
from nachim.data.minhash import signatures
from nachim.data.near import Clusters, cluster
from nachim.data.read import Report
from nachim.data.records import records, size_of
from nachim.data.shingle import batches
from nachim.data.stage import Drop, Joined, Outcome, Row, Shelf, Summary, WholeSet
from nachim.spec.disk import full_disk_is_an_error

SHOWN = 20
"""Clusters that are told: the largest."""
EXCERPT = 200
EXACT, NEAR = "exact duplicate", "near duplicate"


@dataclass(frozen=True, kw_only=True)
class Deduplicate(WholeSet):
    """Drops a row for one that stays, when the Jaccard similarity of their 5-word shingles is at least `threshold`.

    The similarity is counted exactly, so that texts are never chained together. Of two alike the one with more of the
    score `best` stays (one without it has least), then the `keep` one. Rows like those of the files `against` go too.
    """

    threshold: float = 0.8
    keep: Keep = "longest"
    best: str | None = None
    against: tuple[str, ...] = ()
    text_column: str = "text"

    def check(self) -> None:
        if not 0 < self.threshold <= 1:
            self.refuse("threshold", f"is {self.threshold}; a similarity is above 0 and at most 1")

    def files(self) -> tuple[Path, ...]:
        """The files that rows are held against."""
        for path in self.against:
            size_of(Path(path))
        return tuple(Path(path) for path in self.against)

    def part(self, rows: Sequence[Row]) -> Summary:
        """Signature, digest, score and id of each row."""
        best = [row.get(self.best) if self.best else 0.0 for row in rows]
        known = [float(one) if isinstance(one, int | float) else -np.inf for one in best]
        return {**_known([row["text"].encode() for row in rows]), "best": np.array(known), "ids": _ids(rows)}

    def join(self, shelf: Shelf) -> Joined:
        """Find who goes, and for whom. Of a row at most 64 bytes stand in memory: the rest is in `shelf.scratch`,
        until the decisions are read."""
        texts = Gathered(shelf.scratch)
        with full_disk_is_an_error(shelf.scratch):
            self._gather(shelf, texts)
        found = cluster(texts, self.threshold, self.keep, shelf.tick)
        return Joined(_decisions(texts, found, shelf.counts), _facts(texts, found))

    def _gather(self, shelf: Shelf, texts: Gathered) -> None:
        """All rows into `texts`, and then those of the others."""
        for i in range(shelf.count):
            one, some = shelf.summary(i), [row["text"].encode() for row in shelf.rows(i)]
            texts.add(some, json.loads(one["ids"].tobytes()), one["signatures"], one["digests"], one["best"])
        for batch in batches(self._others(), lambda other: len(other[1])):
            some, first = [text for _, text in batch], np.full(len(batch), np.inf)
            texts.add(some, [name for name, _ in batch], **_known(some), best=first)
        texts.seal()

    def apply(self, rows: Sequence[Row], decision: Any) -> list[Outcome]:
        """Drop those that have a keeper."""
        return [row if one is None else _drop(*one) for row, one in zip(rows, decision, strict=True)]

    def _others(self) -> Iterator[tuple[str, bytes]]:
        for path in self.files():
            for record in records(path, self.text_column, Report()):
                yield f"{record.id} of {path.name}", record.text


def _known(texts: Sequence[bytes]) -> dict[str, npt.NDArray[Any]]:
    found = [signatures([]), *(signatures(batch) for batch in batches(texts, len))]
    return {"signatures": np.concatenate(found), "digests": digests(texts)}


def _ids(rows: Sequence[Row]) -> npt.NDArray[np.uint8]:
    """The rows' ids as JSON in an array of bytes."""
    return np.frombuffer(json.dumps([row["id"] for row in rows]).encode(), dtype=np.uint8)


def _drop(keeper: Any, similarity: float, exact: bool) -> Drop:
    return Drop(EXACT if exact else NEAR, f"{keeper} stays, Jaccard {similarity:.3f}")


def _decisions(texts: Gathered, found: Clusters, counts: Sequence[int]) -> Iterator[list[list[Any] | None]]:
    """Of the rows of each shard, for whom each goes, how alike they are, and whether it is the same text."""
    with texts:
        for begin, end in itertools.pairwise(itertools.accumulate(counts, initial=0)):
            keeper = found.keeper[begin:end].tolist()
            told = zip(keeper, found.similarity[begin:end].tolist(), found.exact[begin:end].tolist(), strict=True)
            yield [
                None if one == i else [texts.id(one), round(similarity, 6), exact]
                for i, (one, similarity, exact) in enumerate(told, start=begin)
            ]


def _facts(texts: Gathered, found: Clusters) -> dict[str, Any]:
    """How many clusters there are, by their size, and the largest of them."""
    sizes = np.bincount(found.keeper, minlength=len(found.keeper))
    by_size = zip(*(column.tolist() for column in np.unique(sizes[sizes > 1], return_counts=True)), strict=True)
    clusters_by_size = {str(size): count for size, count in by_size}
    largest = [
        {"keeper": texts.id(i), "rows": int(sizes[i]), "excerpt": texts[i][:EXCERPT].decode(errors="ignore")}
        for i in np.argsort(-sizes, kind="stable")[:SHOWN].tolist()
        if sizes[i] > 1
    ]
    return {
        "clusters": sum(clusters_by_size.values()),
        "clusters_by_size": clusters_by_size,
        "largest": largest,
        "crowded": found.crowded,
    }
