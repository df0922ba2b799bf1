"""What became of every row of a stage: how many stayed and went, why, with samples to look at and scores to plot."""

from __future__ import annotations

import bisect
import hashlib
import heapq
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nachim.data.stage import Drop, Row

SAMPLES = 6
"""Rows shown of each reason, and of what stays."""
EXCERPT = 400
"""Characters of a row that are shown."""
VALUES = 2000
"""Values kept of a score, drawn by the rows' hashes: enough for a histogram."""
LABELS = 200
"""Different values of a label that are counted apart; the rest is counted as `OTHERS`."""
OTHERS = "(others)"
GIVEN = frozenset({"id", "text", "source"})
"""Fields that every row has: none of them is a score or a label."""
Value = str | bool | int | float


@dataclass
class Count:
    """Rows, and the UTF-8 bytes of their texts."""

    rows: int = 0
    bytes: int = 0

    def add(self, rows: int, size: int) -> None:
        """Count `rows` more of `size` bytes in all."""
        self.rows += rows
        self.bytes += size


@dataclass
class Ledger:
    """Counts of a shard, a stage or a whole build. `samples` of what stays stand under the reason ''.

    A sample is [draw, id, source, excerpt, about]; a score's values are [draw, value], kept by the least draw, which is
    a hash of the row: the same rows are shown however they were dealt to shards. `facts` are a stage's own.
    """

    came: Count = field(default_factory=Count)
    kept: Count = field(default_factory=Count)
    dropped: dict[str, Count] = field(default_factory=dict)
    samples: dict[str, list[list[Any]]] = field(default_factory=dict)
    scores: dict[str, list[list[float]]] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def keep(self, row: Row, size: int, new: Mapping[str, Value] = {}) -> None:
        """Count a row that stays, `size` bytes as it came; `new` is what was written to it."""
        self.came.add(1, size)
        self.kept.add(1, len(row["text"].encode()))
        self._show("", row, "", new)

    def drop(self, drop: Drop, row: Row, size: int, new: Mapping[str, Value] = {}) -> None:
        """Count a row that goes, `size` bytes as it came."""
        self.came.add(1, size)
        self.dropped.setdefault(drop.reason, Count()).add(1, size)
        self._show(drop.reason, row, drop.about, new)

    def lose(self, reason: str, rows: int, where: str) -> None:
        """Count `rows` that never became rows: nothing is known of them but where the first stands."""
        self.came.add(rows, 0)
        self.dropped.setdefault(reason, Count()).add(rows, 0)
        self._sample(reason, [draw_of(where), where, "", "", ""])

    def add(self, other: Ledger) -> None:
        """Count what `other` counted."""
        self.came.add(other.came.rows, other.came.bytes)
        self.kept.add(other.kept.rows, other.kept.bytes)
        for reason, count in other.dropped.items():
            self.dropped.setdefault(reason, Count()).add(count.rows, count.bytes)
        for reason, samples in other.samples.items():
            for sample in samples:
                self._sample(reason, sample)
        for name, values in other.scores.items():
            self.scores[name] = heapq.nsmallest(VALUES, [*self.scores.get(name, []), *values])
        for name, counts in other.labels.items():
            for value, count in counts.items():
                self._label(name, value, count)

    @property
    def gone(self) -> Count:
        """All that was dropped."""
        gone = Count()
        for count in self.dropped.values():
            gone.add(count.rows, count.bytes)
        return gone

    def balance(self, where: str) -> None:
        """Raise RuntimeError unless every row that came was kept or dropped."""
        if self.came.rows != self.kept.rows + self.gone.rows:
            raise RuntimeError(f"{where}: {self.came.rows} rows came, {self.kept.rows} stayed, {self.gone.rows} went")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Ledger:
        """The ledger that `to_json` gave `told`."""
        dropped = {reason: Count(**count) for reason, count in told["dropped"].items()}
        return cls(**{**told, "came": Count(**told["came"]), "kept": Count(**told["kept"]), "dropped": dropped})

    def _show(self, reason: str, row: Row, about: str, new: Mapping[str, Value]) -> None:
        draw = draw_of(f"{row.get('source')}\0{row['id']}\0{row['text'][:EXCERPT]}")
        self._sample(reason, [draw, row["id"], row.get("source", ""), row["text"][:EXCERPT], about])
        for name, value in new.items():
            if isinstance(value, str | bool):
                self._label(name, str(value), 1)
            else:
                _least(self.scores.setdefault(name, []), [draw, value], VALUES)

    def _sample(self, reason: str, sample: list[Any]) -> None:
        _least(self.samples.setdefault(reason, []), sample, SAMPLES)

    def _label(self, name: str, value: str, count: int) -> None:
        counts = self.labels.setdefault(name, {})
        place = value if value in counts or len(counts) < LABELS else OTHERS
        counts[place] = counts.get(place, 0) + count


def values_of(row: Row, prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Scores and labels of a row, those within a dictionary under ``dictionary.name``; text and id are none."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from values_of(value, f"{prefix}{name}.")
        elif isinstance(value, Value) and (prefix or name not in GIVEN):
            yield prefix + name, value


def draw_of(what: str) -> int:
    """A hash of `what` that JSON carries exactly, by which samples are drawn."""
    return int.from_bytes(hashlib.blake2b(what.encode("utf-8", "surrogatepass"), digest_size=6).digest())


def _least(held: list[list[Any]], one: list[Any], size: int) -> None:
    """Put `one` into `held`, sorted, unless it is full of lesser ones."""
    if len(held) < size or one[0] < held[-1][0]:
        bisect.insort(held, one, key=lambda item: item[0])
        del held[size:]
