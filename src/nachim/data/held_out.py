"""Text that is held out of every data set made of the same documents, so that one yardstick judges them all."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nachim.data.dedup import NEAR, Seen
from nachim.data.read import Report
from nachim.data.records import records
from nachim.data.shingle import shingles
from nachim.data.stage import Drop, Outcome, PerRow, Row

SALT = b"held out\0"
"""Keeps these hashes apart from those that a corpus' own validation goes by."""


@dataclass(frozen=True, kw_only=True)
class HoldOut(PerRow):
    """Drops a `share` of all texts by a hash of their content: the same ones, whatever else is read beside them.

    With `only` it is all others that go.
    """

    share: float = 0.1
    only: bool = False

    def check(self) -> None:
        if not 0 < self.share < 1:
            self.refuse("share", f"is {self.share}; it must lie between 0 and 1")

    def one(self, row: Row) -> Outcome:
        word = int.from_bytes(hashlib.sha256(SALT + row["text"].encode()).digest()[:8], "little")
        chosen = word < self.share * 2.0**64
        return row if chosen == self.only else Drop("held out" if chosen else "not held out")


@dataclass(frozen=True, kw_only=True)
class FarFrom(PerRow):
    """Drops a row more than half of whose 5-word shingles stand in the files `texts`, JSON lines with a text.

    The files' shingles stand in a Bloom filter (`nachim.data.dedup.Seen`), so that memory is bounded.
    """

    texts: tuple[str, ...]

    def files(self) -> tuple[Path, ...]:
        return tuple(Path(path) for path in self.texts)

    def one(self, row: Row) -> Outcome:
        share = _seen(self).share(shingles(row["text"].encode()))
        return row if share <= NEAR else Drop("near to other text", f"{share:.0%} of its shingles")


@functools.cache
def _seen(stage: FarFrom) -> Seen:
    seen = Seen(sum(len(text) for text in _texts(stage)))
    for text in _texts(stage):
        seen.add(shingles(text))
    return seen


def _texts(stage: FarFrom) -> Iterator[bytes]:
    for path in stage.files():
        for record in records(path, "text", Report()):
            yield record.text
