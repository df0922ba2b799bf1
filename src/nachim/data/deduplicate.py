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
        """Find who goes, and for whom. Beyond its signature a row takes some 70 bytes of memory, its text none."""
        others = list(self._others())
        total = sum(shelf.counts) + len(others)
        offsets, texts = self._spooled(shelf, others)
        extra = {**_known([text for _, text in others]), "best": np.full(len(others), np.inf)}
        kept = {name: np.empty((total, *one.shape[1:]), one.dtype) for name, one in extra.items()}
        ends = np.cumsum([*shelf.counts, len(others)])
        for i, end in enumerate(ends.tolist()):
            one = shelf.summary(i) if i < shelf.count else extra
            for name, column in kept.items():
                column[end - len(one[name]) : end] = one[name]
        rank = self._rank(np.diff(offsets), kept.pop("best"))
        first = same(kept.pop("digests"), rank)
        found = cluster(
            kept["signatures"],
            lambda i: texts[offsets[i] : offsets[i + 1]].tobytes(),
            rank,
            self.threshold,
            first,
            shelf.tick,
        )
        exact = first == first[found.keeper]
        names = _names(shelf, found, [name for name, _ in others])
        decisions = [
            _decision(found, exact, names, end - count, end) for end, count in zip(ends, shelf.counts, strict=False)
        ]
        excerpt = {
            i: texts[offsets[i] : offsets[i] + EXCERPT].tobytes().decode(errors="ignore") for i in _largest(found)
        }
        return Joined(decisions, _facts(found, names, excerpt))

    def _spooled(
        self, shelf: Shelf, others: Sequence[tuple[str, bytes]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """All texts in one file, and where each begins."""
        raw, offsets = shelf.scratch / "texts", array("q", [0])
        with full_disk_is_an_error(raw), open(raw, "wb") as file:
            for text in _texts(shelf, [text for _, text in others]):
                file.write(text)
                offsets.append(offsets[-1] + len(text))
        texts = np.memmap(raw, dtype=np.uint8, mode="r") if offsets[-1] else np.empty(0, np.uint8)
        return np.frombuffer(offsets, dtype=np.int64), texts

    def apply(self, rows: Sequence[Row], decision: Any) -> list[Outcome]:
        """Drop those that have a keeper."""
        return [row if one is None else _drop(*one) for row, one in zip(rows, decision, strict=True)]

    def _rank(self, sizes: npt.NDArray[np.int64], best: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Order of preference: what rows are held against first, then by score, then as `keep` says."""
        keys = (-sizes, -best) if self.keep == "longest" else (-best,)
        rank = np.empty(len(sizes), np.int64)
        rank[np.lexsort((np.arange(len(sizes)), *keys))] = np.arange(len(sizes))
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


def _names(shelf: Shelf, found: Clusters, others: Sequence[str]) -> dict[int, Any]:
    """The id of everyone that somebody goes for."""
    wanted = set(np.unique(found.keeper[~found.kept]).tolist())
    names, begin = dict[int, Any](), 0
    for i, count in enumerate(shelf.counts):
        ids = json.loads(shelf.summary(i)["ids"].tobytes())
        names |= {begin + place: ids[place] for place in range(count) if begin + place in wanted}
        begin += count
    return names | {begin + place: name for place, name in enumerate(others)}


def _decision(
    found: Clusters, exact: npt.NDArray[np.bool_], names: dict[int, Any], begin: int, end: int
) -> list[list[Any] | None]:
    """Of the rows from `begin` to `end`, for whom each goes, how alike they are, and whether it is the same text."""
    return [
        None
        if found.keeper[i] == i
        else [names[int(found.keeper[i])], round(float(found.similarity[i]), 6), bool(exact[i])]
        for i in range(begin, end)
    ]


def _facts(found: Clusters, names: dict[int, Any], excerpts: dict[int, str]) -> dict[str, Any]:
    sizes = np.bincount(found.keeper, minlength=len(found.keeper))
    sized = Counter(sizes[sizes > 1].tolist())
    return {
        "clusters": sum(sized.values()),
        "clusters_by_size": {str(size): sized[size] for size in sorted(sized)},
        "largest": [{"keeper": names[i], "rows": int(sizes[i]), "excerpt": text} for i, text in excerpts.items()],
        "crowded": found.crowded,
    }
