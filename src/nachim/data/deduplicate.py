"""Deduplication as a stage: of all rows together, and against files of others."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nachim.data.distinct import DIGEST_BYTES, Keep, same
from nachim.data.minhash import signatures
from nachim.data.near import Clusters, cluster
from nachim.data.read import Report
from nachim.data.records import records, size_of
from nachim.data.shingle import batches
from nachim.data.stage import Drop, Joined, Outcome, Row, Shelf, Summary, WholeSet

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
        """Signature, digest, size, score and id of each row."""
        best = [row.get(self.best) if self.best else 0.0 for row in rows]
        known = [float(one) if isinstance(one, int | float) else -np.inf for one in best]
        return {**_known([row["text"].encode() for row in rows]), "best": np.array(known), "ids": _ids(rows)}

    def join(self, shelf: Shelf) -> Joined:
        """Find who goes, and for whom."""
        raw = shelf.scratch / "texts"
        others = list(self._others())
        with open(raw, "wb") as file:
            offsets = array("q", [0])
            for text in _texts(shelf, [text for _, text in others]):
                file.write(text)
                offsets.append(offsets[-1] + len(text))
        texts = np.memmap(raw, dtype=np.uint8, mode="r") if offsets[-1] else np.empty(0, np.uint8)
        sums = [shelf.summary(i) for i in range(shelf.count)]
        counts = [len(one["sizes"]) for one in sums]
        names = [name for one in sums for name in json.loads(one["ids"].tobytes())] + [name for name, _ in others]
        extra = {**_known([text for _, text in others]), "best": np.full(len(others), np.inf)}
        whole = {key: np.concatenate([one.pop(key) for one in (*sums, extra)]) for key in list(extra)}
        rank = self._rank(whole)
        found = cluster(
            whole["signatures"],
            lambda i: texts[offsets[i] : offsets[i + 1]].tobytes(),
            rank,
            self.threshold,
            same(whole["digests"], rank),
            shelf.tick,
        )
        exact = (whole["digests"] == whole["digests"][found.keeper]).all(axis=1)
        told = [
            None if keeper == i else [names[keeper], round(float(found.similarity[i]), 6), bool(exact[i])]
            for i, keeper in enumerate(found.keeper.tolist())
        ]
        ends = np.cumsum(counts).tolist()
        decisions = [told[end - count : end] for end, count in zip(ends, counts, strict=True)]
        excerpt = [texts[offsets[i] : offsets[i] + EXCERPT].tobytes().decode(errors="ignore") for i in _largest(found)]
        return Joined(decisions, _facts(found, names, excerpt))

    def apply(self, rows: Sequence[Row], decision: Any) -> list[Outcome]:
        """Drop those that have a keeper."""
        return [row if one is None else _drop(*one) for row, one in zip(rows, decision, strict=True)]

    def _rank(self, whole: Summary) -> npt.NDArray[np.int64]:
        """Order of preference: what rows are held against first, then by score, then as `keep` says."""
        count = len(whole["sizes"])
        sizes = whole["sizes"] if self.keep == "longest" else np.zeros(count, np.int64)
        rank = np.empty(count, np.int64)
        rank[np.lexsort((np.arange(count), -sizes, -whole["best"]))] = np.arange(count)
        return rank

    def _others(self) -> Iterator[tuple[str, bytes]]:
        for path in self.files():
            for record in records(path, self.text_column, Report()):
                yield f"{record.id} of {path.name}", record.text


def _known(texts: Sequence[bytes]) -> Summary:
    digests = b"".join(hashlib.sha256(text).digest()[:DIGEST_BYTES] for text in texts)
    found = [signatures([]), *(signatures(batch) for batch in batches(texts, len))]
    return {
        "signatures": np.concatenate(found),
        "digests": np.frombuffer(digests, dtype=np.uint64).reshape(-1, DIGEST_BYTES // 8),
        "sizes": np.array([len(text) for text in texts], dtype=np.int64),
    }


def _ids(rows: Sequence[Row]) -> npt.NDArray[np.uint8]:
    """The rows' ids as JSON in an array of bytes."""
    return np.frombuffer(json.dumps([row["id"] for row in rows]).encode(), dtype=np.uint8)


def _texts(shelf: Shelf, others: Sequence[bytes]) -> Iterator[bytes]:
    for i in range(shelf.count):
        for row in shelf.rows(i):
            yield row["text"].encode()
    yield from others


def _drop(keeper: Any, similarity: float, exact: bool) -> Drop:
    return Drop(EXACT if exact else NEAR, f"{keeper} stays, Jaccard {similarity:.3f}")


def _largest(found: Clusters) -> list[int]:
    """The keepers of the largest clusters, the largest first."""
    sizes = np.bincount(found.keeper, minlength=len(found.keeper))
    order = np.argsort(-sizes, kind="stable")[:SHOWN]
    return [int(i) for i in order if sizes[i] > 1]


def _facts(found: Clusters, names: Sequence[Any], excerpts: Sequence[str]) -> dict[str, Any]:
    sizes = np.bincount(found.keeper, minlength=len(found.keeper))
    largest = [
        {"keeper": names[i], "rows": int(sizes[i]), "excerpt": excerpt}
        for i, excerpt in zip(_largest(found), excerpts, strict=True)
    ]
    sized = Counter(sizes[sizes > 1].tolist())
    return {
        "clusters": sum(sized.values()),
        "clusters_by_size": {str(size): sized[size] for size in sorted(sized)},
        "largest": largest,
        "crowded": found.crowded,
    }
