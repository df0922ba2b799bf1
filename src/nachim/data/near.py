"""Near duplicates among many texts: who may go, and for whom.

A text is removed only for a text that stays, and only when the similarity of the two, counted exactly on their
shingles, reaches the threshold: a cluster is a star around its keeper, never a chain of texts each like the next.
Candidates come from MinHash bands, one band at a time, so that beyond the signatures a text costs some 40 bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.data.minhash import BANDS, NOTHING, Signatures, agreement, band_keys, jaccard
from nachim.data.shingle import shingles

MARGIN = 0.3
"""A candidate is compared exactly unless its estimate lies this far below the threshold: twice the error that a text of
ten shingles can have, eight times that of a long one."""
CROWD = 4096
"""Keepers of one bucket that a text is compared with at most: a band that more share says nothing about them."""
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Clusters:
    """`keeper` [n] is the text that text i is removed for, i itself where it stays; `similarity` [n] that of the two.

    `crowded` counts the texts that met a bucket of more than `CROWD` keepers, and were not compared with all of them.
    """

    keeper: Indices
    similarity: npt.NDArray[np.float64]
    crowded: int

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Which texts stay."""
        return self.keeper == np.arange(len(self.keeper))


def cluster(
    found: Signatures,
    text: Callable[[int], bytes],
    rank: Indices,
    threshold: float,
    keeper: Indices,
    tick: Callable[[float], None],
) -> Clusters:
    """Remove every text whose similarity to one that stays is `threshold` or more.

    `rank` [n] is the order of preference (0 stays rather than 1). `keeper` names those removed already (i where text i
    is not): they are left alone. `text` reads one text again; `tick` hears the share done, 0 to 1.
    """
    work = _Work(found, text, rank, threshold, keeper.copy())
    for band in range(BANDS):
        work.sweep(band)
        tick((band + 1) / (BANDS + 1))
    work.settle()
    tick(1.0)
    return Clusters(work.keeper, work.similarity, len(work.crowded))


class _Work:
    """Keepers as they stand, band by band."""

    def __init__(
        self, found: Signatures, text: Callable[[int], bytes], rank: Indices, threshold: float, keeper: Indices
    ) -> None:
        self.found, self.rank, self.threshold, self.keeper = found, rank, threshold, keeper
        self.given = keeper != np.arange(len(keeper))
        """Which were removed at first, for a text that is the same."""
        self.similarity = np.ones(len(rank))
        self.crowded: set[int] = set()
        self.worded = found[:, 0] != NOTHING
        self._shingles = functools.lru_cache(maxsize=1024)(lambda i: shingles(text(i)))
        self._jaccard = functools.lru_cache(maxsize=1 << 16)(self._compared)

    def _compared(self, one: int, other: int) -> float:
        return jaccard(self._shingles(one), self._shingles(other))

    def sweep(self, band: int) -> None:
        """Compare the texts that still stay and agree in `band`, the preferred first."""
        stay = np.flatnonzero((self.keeper == np.arange(len(self.keeper))) & self.worded)
        for members in _buckets(band_keys(self.found[stay], band), stay, self.rank):
            keepers = members[:1]
            for one in members[1:]:
                if not self.remove(int(one), keepers):
                    keepers = np.append(keepers, one)

    def remove(self, one: int, keepers: Indices) -> bool:
        """Remove text `one` for the most similar of `keepers`, if one is similar enough."""
        if len(keepers) > CROWD:
            self.crowded.add(one)
            keepers = keepers[:CROWD]
        estimate = agreement(self.found, one, keepers)
        likely = np.flatnonzero(estimate >= self.threshold - MARGIN)
        for place in likely[np.argsort(-estimate[likely], kind="stable")]:
            similarity = self._jaccard(int(keepers[place]), one)
            if similarity >= self.threshold:
                self.keeper[one], self.similarity[one] = keepers[place], similarity
                return True
        return False

    def settle(self) -> None:
        """Give every text whose keeper went another one that stays, or let it stay."""
        lost = np.flatnonzero((self.keeper[self.keeper] != self.keeper) & ~self.given)
        lost = lost[np.argsort(self.rank[lost])]
        orphans = np.array([one for one in lost if not self._inherited(int(one))], dtype=np.int64)
        near = self._neighbours(orphans)
        undecided = set(orphans.tolist())
        self.keeper[orphans], self.similarity[orphans] = orphans, 1.0
        for one in orphans.tolist():
            stay = [other for other in near[one] if self.keeper[other] == other and other not in undecided]
            if stay:
                self.remove(one, np.array(sorted(stay, key=lambda other: self.rank[other])))
            undecided.discard(one)
        for one in np.flatnonzero(self.given):
            same = self.keeper[one]  # the same text, so as near to its keeper
            self.keeper[one], self.similarity[one] = self.keeper[same], self.similarity[same]

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

    def _neighbours(self, of: Indices) -> dict[int, set[int]]:
        """The texts, not removed at first, that agree with each of `of` in some band."""
        near: dict[int, set[int]] = {int(one): set() for one in of}
        there = np.flatnonzero(self.worded & ~self.given)
        for band in range(BANDS) if len(of) else ():
            keys = band_keys(self.found[there], band)
            order = np.argsort(keys, kind="stable")
            mine = band_keys(self.found[of], band)
            begins, ends = (np.searchsorted(keys[order], mine, side=side) for side in ("left", "right"))
            for one, begin, end in zip(of.tolist(), begins, ends, strict=True):
                near[one].update(there[order[begin:end]].tolist())
        return {one: others - {one} for one, others in near.items()}


def _buckets(keys: npt.NDArray[np.uint64], texts: Indices, rank: Indices) -> list[Indices]:
    """The texts that share a key with another, key by key, each in the order of preference."""
    order = np.lexsort((rank[texts], keys))
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    begins, ends = np.concatenate(([0], edges)), np.concatenate((edges, [len(keys)]))
    shared = ends - begins > 1
    return [texts[order[begin:end]] for begin, end in zip(begins[shared], ends[shared], strict=True)]
