"""Near duplicates among many texts: who may go, and for whom.

A text is removed only for a text that stays, and only when the similarity of the two, counted exactly on their
shingles, reaches the threshold: a cluster is a star around its keeper, never a chain of texts each like the next.
Candidates come from MinHash bands, one band at a time; signatures, keys and texts stand on disk, and what memory holds
of a text at once is at most 64 bytes (`nachim.data.gathered`).
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.data.gathered import CHUNK, Gathered, Indices, Keep
from nachim.data.hash import Words
from nachim.data.minhash import BANDS, VALUES, Signatures, alike, band_keys, jaccard
from nachim.data.shingle import shingles

MARGIN = 0.3
"""A candidate is compared exactly unless its estimate lies this far below the threshold: twice the error that a text of
ten shingles can have, eight times that of a long one."""
CROWD = 4096
"""Keepers of one bucket that a text is compared with at most: a band that more share says nothing about them."""
RECENT_BYTES = 1 << 25
"""What the shingles of texts met last may take of memory, with `ENTRY_BYTES` for the rest of each."""
RECENT_PAIRS = 1 << 16
"""Pairs compared last whose similarity is kept: two texts may meet in every band."""
ENTRY_BYTES = 256
ORPHANS = 1 << 14
"""Texts that lost their keeper whose neighbours are looked for at a time."""


@dataclass(frozen=True)
class Clusters:
    """`keeper` [n] is the text that text i is removed for, i itself where it stays; `similarity` [n] that of the two.

    `exact` says of those removed which have the very text of their keeper. `crowded` counts the texts that met a bucket
    of more than `CROWD` keepers, and were not compared with all of them.
    """

    keeper: Indices
    similarity: npt.NDArray[np.float64]
    exact: npt.NDArray[np.bool_]
    crowded: int

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Which texts stay."""
        return self.keeper == np.arange(len(self.keeper), dtype=self.keeper.dtype)


def cluster(texts: Gathered, threshold: float, keep: Keep, tick: Callable[[float], None]) -> Clusters:
    """Remove every text that equals one that stays, or whose similarity to one is `threshold` or more.

    Of two alike the one with the higher score stays, then the `keep` one. `tick` hears the share done, 0 to 1.
    """
    rank = texts.ranked(keep)
    work = _Work(texts, rank, texts.same(rank), threshold)
    for band in range(BANDS):
        work.sweep(band)
        tick((band + 1) / (BANDS + 1))
    work.settle()
    tick(1.0)
    return Clusters(work.keeper, work.similarity, work.given, int(work.crowded.sum()))


class _Work:
    """Keepers as they stand, band by band. `keeper` names at first those of texts that are the same."""

    def __init__(self, texts: Gathered, rank: Indices, keeper: Indices, threshold: float) -> None:
        self.texts, self.rank, self.keeper, self.threshold = texts, rank, keeper, threshold
        self.given = ~self._stay()
        """Which were removed at first; when all is settled, which of those were so for a text that stays."""
        self.similarity = np.ones(len(rank))
        self.crowded = np.zeros(len(rank), dtype=bool)
        self._shingles = _Recent(lambda i: shingles(texts[i]))
        self._jaccard = functools.lru_cache(maxsize=RECENT_PAIRS)(self._compared)

    def _compared(self, one: int, other: int) -> float:
        return jaccard(self._shingles(one), self._shingles(other))

    def _stay(self) -> npt.NDArray[np.bool_]:
        return self.keeper == self.texts.numbers()

    def sweep(self, band: int) -> None:
        """Compare the texts that still stay and agree in `band`, the preferred first."""
        for members in self.texts.buckets(band, self._stay() & self.texts.worded, self.rank):
            keepers = _Keepers()
            for one in members.tolist():
                signature = self.texts.signature(one)
                if not self.remove(one, signature, keepers):
                    keepers.add(one, signature)

    def remove(self, one: int, signature: Signatures, keepers: _Keepers) -> bool:
        """Remove text `one` for the most similar of `keepers`, if one is similar enough."""
        if keepers.count > CROWD:
            self.crowded[one] = True
        estimate = alike(keepers.signatures, signature)
        likely = np.flatnonzero(estimate >= self.threshold - MARGIN)
        for place in likely[np.argsort(-estimate[likely], kind="stable")].tolist():
            similarity = self._jaccard(keepers.names[place], one)
            if similarity >= self.threshold:
                self.keeper[one], self.similarity[one] = keepers.names[place], similarity
                return True
        return False

    def settle(self) -> None:
        """Give every text whose keeper went another one that stays, or let it stay."""
        lost = np.flatnonzero((self.keeper[self.keeper] != self.keeper) & ~self.given)
        lost = lost[np.argsort(self.rank[lost])]
        orphans = np.array([one for one in lost.tolist() if not self._inherited(one)], dtype=np.int64)
        undecided = np.zeros(len(self.keeper), dtype=bool)
        undecided[orphans] = True
        self.keeper[orphans], self.similarity[orphans] = orphans, 1.0
        for begin in range(0, len(orphans), ORPHANS):
            for one, others in self._neighbours(orphans[begin : begin + ORPHANS]).items():
                stay = [other for other in others if self.keeper[other] == other and not undecided[other]]
                keepers = _Keepers()
                for other in sorted(stay, key=lambda other: int(self.rank[other])):
                    keepers.add(other, self.texts.signature(other))
                self.remove(one, self.texts.signature(one), keepers)
                undecided[one] = False
        given = np.flatnonzero(self.given)
        same = self.keeper[given]  # the same text, so as near to its keeper
        self.given[given] = self.keeper[same] == same
        self.keeper[given], self.similarity[given] = self.keeper[same], self.similarity[same]

    def _inherited(self, one: int) -> bool:
        """Remove text `one` for the text that its keeper went for, if it is similar enough."""
        last = one
        while self.keeper[last] != last:
            last = int(self.keeper[last])
        similarity = self._jaccard(last, one)
        if similarity < self.threshold:
            return False
        self.keeper[one], self.similarity[one] = last, similarity
        return True

    def _neighbours(self, of: npt.NDArray[np.int64]) -> dict[int, set[int]]:
        """The texts that stay so far and agree with each of `of` in some band, in the order of `of`."""
        near: dict[int, set[int]] = {one: set() for one in of.tolist()}
        found = np.stack([self.texts.signature(one) for one in near])
        there = self._stay() & self.texts.worded
        for band in range(BANDS):
            mine, keys = band_keys(found, band), self.texts.keys(band)
            order = np.argsort(mine)
            for begin in range(0, len(keys), CHUNK):
                some = keys[begin : begin + CHUNK]
                first, last = (np.searchsorted(mine[order], some, side=side) for side in ("left", "right"))
                for place in np.flatnonzero((last > first) & there[begin : begin + CHUNK]).tolist():
                    for one in of[order[first[place] : last[place]]].tolist():
                        near[one].add(begin + place)
        return {one: others - {one} for one, others in near.items()}


class _Keepers:
    """Texts of a bucket that stay, with the signatures of at most `CROWD` of them."""

    def __init__(self) -> None:
        self.names: list[int] = []
        self.count = 0
        self._held = np.empty((1, VALUES), dtype=np.uint32)

    @property
    def signatures(self) -> Signatures:
        """Of each of `names` [n, VALUES]."""
        return self._held[: len(self.names)]

    def add(self, name: int, signature: Signatures) -> None:
        """One more stays."""
        self.count += 1
        if self.count > CROWD:
            return
        if len(self.names) == len(self._held):
            self._held = np.concatenate((self._held, np.empty_like(self._held)))
        self._held[len(self.names)] = signature
        self.names.append(name)


class _Recent:
    """What `make` gave for the numbers asked for last, as long as all of it takes at most `RECENT_BYTES`."""

    def __init__(self, make: Callable[[int], Words]) -> None:
        self._make, self._size = make, 0
        self._held: OrderedDict[int, Words] = OrderedDict()

    def __call__(self, i: int) -> Words:
        if i in self._held:
            self._held.move_to_end(i)
            return self._held[i]
        made = self._held[i] = self._make(i)
        self._size += made.nbytes + ENTRY_BYTES
        while self._size > RECENT_BYTES and len(self._held) > 1:
            self._size -= self._held.popitem(last=False)[1].nbytes + ENTRY_BYTES
        return made
