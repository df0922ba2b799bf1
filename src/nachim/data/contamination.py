"""Which items of a benchmark stand in training text: shared n-grams, found exactly.

The n-grams of the benchmark, which are few, go into a Bloom filter; training text of any size streams past it, and what
the filter holds is looked up in the sorted n-grams themselves. Nothing shared is missed, and an n-gram is taken for
another only where two 64-bit hashes are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nachim.data.bloom import Bloom
from nachim.data.hash import Words
from nachim.data.read import Report
from nachim.data.records import Id, Record, lines_to, records, size_of, skipped
from nachim.data.shingle import Indices, batches, grams, windows
from nachim.spec.error import UserError

FILTER_RATE = 1e-4
"""How often the filter may take an n-gram for one of the benchmark's, before it is looked up."""


@dataclass(frozen=True)
class Unit:
    """What is compared: `length` words in turn, or characters (bytes of UTF-8, separators as one)."""

    length: int
    characters: bool = False

    def of(self, texts: Sequence[bytes]) -> tuple[Words, Indices]:
        """Hashes of all n-grams, and the text that each stands in; a shorter text has none."""
        found, text = windows(texts, self.length) if self.characters else grams(texts, self.length, fill=False)
        return found, text


@dataclass(frozen=True)
class Item:
    """A contaminated item, and the share of its n-grams that stand in the training text."""

    id: Id
    share: float


@dataclass(frozen=True)
class Contamination:
    """What was found. `rate` is the share of the items long enough to be judged that are contaminated."""

    items: int
    too_short: list[Id]
    contaminated: list[Item]
    rate: float
    train_records: int
    train_contaminated: int
    false_positive_rate: float
    filter_rate_measured: float
    skipped: dict[str, dict[str, int]]
    notes: list[str]

    def to_json(self) -> dict[str, object]:
        """As plain JSON values; `contaminated` holds the ids, `shares` what is shared of each."""
        told = asdict(self)
        told["contaminated"] = [item.id for item in self.contaminated]
        return told | {"shares": {str(item.id): item.share for item in self.contaminated}}


class Benchmark:
    """The n-grams of a benchmark's items, and which of them were met.

    Raises UserError when `path` has no record.
    """

    def __init__(self, path: Path, unit: Unit, column: str, report: Report) -> None:
        size_of(path)
        found = list(records(path, column, report))
        if not found:
            raise UserError(f"no record in {path}" + "".join(f"; {note}" for note in report.notes()))
        self.ids = [record.id for record in found]
        hashes, self.item = unit.of([record.text for record in found])
        self.grams, self.which = np.unique(hashes, return_inverse=True)
        self.filter = Bloom(self.grams, FILTER_RATE)
        self.met = np.zeros(len(self.grams), dtype=bool)
        self.looked_up = self.false = 0

    def forget(self) -> None:
        """Begin anew: none was met."""
        self.met[:] = False
        self.looked_up = self.false = 0

    def meet(self, hashes: Words) -> npt.NDArray[np.bool_]:
        """Which of `hashes` are n-grams of the benchmark; they are marked as met."""
        shared = self.filter.has(hashes)
        likely = hashes[shared]
        place = np.minimum(np.searchsorted(self.grams, likely), len(self.grams) - 1) if len(self.grams) else likely
        true = self.grams[place] == likely if len(self.grams) else np.zeros(len(likely), dtype=bool)
        self.met[place[true]] = True
        self.looked_up += len(hashes) - int(true.sum())
        self.false += int((~true).sum())
        shared[shared] = true
        return shared

    def shares(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """N-grams of each item, and the share of them that were met."""
        count = np.bincount(self.item, minlength=len(self.ids))
        met = np.bincount(self.item, weights=self.met[self.which], minlength=len(self.ids))
        return count, met / np.maximum(count, 1)


def contamination(
    train: Path, benchmark: Path, unit: Unit, column: str, clean: Path | None, tick: Callable[[float], None]
) -> Contamination:
    """The items of `benchmark` that share an n-gram with a record of `train`; both are JSON lines.

    `clean` takes the lines of `train` that share none, byte for byte. `tick` hears the share of `train` read. Raises
    UserError for bad input, and when the disk refuses.
    """
    if unit.length < 1:
        raise UserError(f"an n-gram of {unit.length} is none; give at least 1")
    if clean is not None and clean.resolve() in (train.resolve(), benchmark.resolve()):
        raise UserError(f"--out is {clean}, which is read; write to another file")
    reports = {"train": Report(), "eval": Report()}
    dirty, size = 0, max(1, size_of(train))
    items = Benchmark(benchmark, unit, column, reports["eval"])
    with lines_to(clean) as write:
        for batch in batches(records(train, column, reports["train"]), lambda record: len(record.text)):
            dirty += _pass(batch, items, unit, write)
            tick(min(1.0, reports["train"].bytes / size))
    if not reports["train"].documents:
        raise UserError(f"no record in {train}" + "".join(f"; {note}" for note in reports["train"].notes()))
    count, share = items.shares()
    hit = np.flatnonzero(share > 0)
    return Contamination(
        items=len(items.ids),
        too_short=[items.ids[i] for i in np.flatnonzero(count == 0)],
        contaminated=[Item(items.ids[i], round(float(share[i]), 6)) for i in hit],
        rate=len(hit) / max(1, int((count > 0).sum())),
        train_records=reports["train"].documents,
        train_contaminated=dirty,
        false_positive_rate=items.filter.rate,
        filter_rate_measured=items.false / max(1, items.looked_up),
        skipped={name: skipped(report) for name, report in reports.items()},
        notes=[f"{name}: {note}" for name, report in reports.items() for note in report.notes()],
    )


def _pass(batch: list[Record], items: Benchmark, unit: Unit, write: Callable[[bytes], object]) -> int:
    """Hold a batch of training records against the benchmark and write those that share nothing; how many do."""
    hashes, place = unit.of([record.text for record in batch])
    shared = np.zeros(len(batch), dtype=bool)
    shared[place[items.meet(hashes)]] = True
    for i in np.flatnonzero(~shared):
        write(batch[i].line)
    return int(shared.sum())
