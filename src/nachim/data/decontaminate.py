"""Decontamination as a stage: rows that share an n-gram with a benchmark go."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nachim.data.contamination import Benchmark, Unit
from nachim.data.read import Report
from nachim.data.records import size_of
from nachim.data.shingle import batches
from nachim.data.stage import Drop, Joined, Outcome, Row, Shelf, Summary, WholeSet


@dataclass(frozen=True, kw_only=True)
class Decontaminate(WholeSet):
    """Drops rows that share `ngram` words (or `characters`) in turn with an item of a benchmark, found exactly.

    `benchmarks` are files of JSON lines. The ledger says which items of each stand in the rows, and how much of them.
    """

    benchmarks: tuple[str, ...]
    ngram: int = 13
    characters: bool = False
    text_column: str = "text"

    def check(self) -> None:
        self.require_positive("ngram")
        if not self.benchmarks:
            self.refuse("benchmarks", "names no file")

    def files(self) -> tuple[Path, ...]:
        """The benchmarks."""
        for path in self.benchmarks:
            size_of(Path(path))
        return tuple(Path(path) for path in self.benchmarks)

    def part(self, rows: Sequence[Row]) -> Summary:
        """Of each benchmark, which of its n-grams were met, and in which rows."""
        unit, found = Unit(self.ngram, self.characters), {}
        texts = [row["text"].encode() for row in rows]
        for number, benchmark in enumerate(opened(self)):
            benchmark.forget()
            hit, begin = np.zeros(len(texts), dtype=bool), 0
            for batch in batches(texts, len):
                hashes, place = unit.of(batch)
                hit[begin + place[benchmark.meet(hashes)]] = True
                begin += len(batch)
            found[f"hit{number}"], found[f"met{number}"] = hit, np.flatnonzero(benchmark.met)
            found[f"looked{number}"] = np.array([benchmark.looked_up, benchmark.false])
        return found

    def join(self, shelf: Shelf) -> Joined:
        """Which benchmark each row touches, and what was found of each."""
        benchmarks = opened(self)
        looked, rows = np.zeros((len(benchmarks), 2), np.int64), np.zeros(len(benchmarks), np.int64)
        for benchmark in benchmarks:
            benchmark.forget()
        for i in range(shelf.count):
            one = shelf.summary(i)
            for number, benchmark in enumerate(benchmarks):
                benchmark.met[one[f"met{number}"]] = True
                looked[number] += one[f"looked{number}"]
                rows[number] += one[f"hit{number}"].sum()
        told = zip(self.benchmarks, benchmarks, looked.tolist(), rows.tolist(), strict=True)
        facts = [_found(*each) for each in told]
        return Joined(self._decisions(shelf), {"benchmarks": facts})

    def _decisions(self, shelf: Shelf) -> Iterator[list[int | None]]:
        """Of the rows of each shard the first benchmark that each touches."""
        for i in range(shelf.count):
            one = shelf.summary(i)
            hits = np.stack([one[f"hit{number}"] for number in range(len(self.benchmarks))])
            yield [int(np.argmax(column)) if column.any() else None for column in hits.T]

    def apply(self, rows: Sequence[Row], decision: Any) -> list[Outcome]:
        """Drop those that touch one."""
        what = f"{self.ngram} {'characters' if self.characters else 'words'}"
        names = [Path(path).name for path in self.benchmarks]
        return [
            row if one is None else Drop(f"contaminated: shares {what} with {names[one]}")
            for row, one in zip(rows, decision, strict=True)
        ]


def _found(path: str, benchmark: Benchmark, looked: Sequence[int], rows: int) -> dict[str, Any]:
    """What was found of a benchmark, n-grams looked up and in vain among them, and how many rows touch it."""
    count, share = benchmark.shares()
    hit = np.flatnonzero(share > 0)
    return {
        "benchmark": Path(path).name,
        "items": len(benchmark.ids),
        "too_short": int((count == 0).sum()),
        "contaminated": {str(benchmark.ids[i]): round(float(share[i]), 6) for i in hit},
        "rate": len(hit) / max(1, int((count > 0).sum())),
        "rows": rows,
        "filter_rate_stated": benchmark.filter.rate,
        "filter_rate_measured": looked[1] / max(1, looked[0]),
    }


def opened(stage: Decontaminate) -> tuple[Benchmark, ...]:
    """The benchmarks' n-grams, read once by a process as long as the files stay."""
    return _opened(stage, tuple(path.stat().st_mtime_ns for path in stage.files()))


@functools.lru_cache(maxsize=4)
def _opened(stage: Decontaminate, times: tuple[int, ...]) -> tuple[Benchmark, ...]:
    unit = Unit(stage.ngram, stage.characters)
    return tuple(Benchmark(path, unit, stage.text_column, Report()) for path in stage.files())
