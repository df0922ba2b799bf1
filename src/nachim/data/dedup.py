"""Near duplicates: documents most of whose 5-word shingles already stand elsewhere in the corpus."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nachim.data.hash import Words, mix
from nachim.data.shingle import shingles
from nachim.data.spool import Spool

NEAR = 0.5
LEAST_BITS, MOST_BITS = 20, 33


class Seen:
    """A set of shingles in bounded memory: a Bloom filter with two probes, from 128 KiB to 1 GiB.

    Up to 256 MiB of corpus it has at least 32 bits a byte and takes some 1 new shingle in 10,000 for seen.
    Above 4 GiB it keeps one shingle in 2, 4, 8, ... by hash, so that it never takes more than some 1 in 20.
    """

    def __init__(self, corpus_bytes: int) -> None:
        bits = min(MOST_BITS, max(LEAST_BITS, (32 * corpus_bytes - 1).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << (bits - 3), dtype=np.uint8)
        self._skip = np.uint64((1 << max(0, (2 * corpus_bytes - 1).bit_length() - bits)) - 1)

    def share(self, hashes: Words) -> float:
        """The share of `hashes` that were added before, 0 to 1."""
        place, bit = self._probe(hashes)
        hit = (self._table[place] & bit).astype(bool).all(axis=0)
        return float(hit.mean()) if hit.size else 0.0

    def add(self, hashes: Words) -> None:
        """Put `hashes` into the set."""
        place, bit = self._probe(hashes)
        np.bitwise_or.at(self._table, place, bit)

    def _probe(self, hashes: Words) -> tuple[Words, npt.NDArray[np.uint8]]:
        kept = hashes[(hashes & self._skip) == 0]
        slot = np.stack([kept, mix(kept)]) >> self._shift
        return slot >> np.uint64(3), np.left_shift(1, slot & np.uint64(7)).astype(np.uint8)


def distinct(spool: Spool, order: npt.NDArray[np.int64], tick: Callable[[float], None]) -> npt.NDArray[np.int64]:
    """The documents of `order` with at most half of their shingles in those kept before them.

    `tick` hears the share done, 0 to 1.
    """
    seen, kept = Seen(spool.size), np.ones(len(order), dtype=bool)
    done = np.cumsum(spool.sizes[order]) / spool.size
    for i, document in enumerate(order):
        hashes = shingles(spool[document])
        kept[i] = seen.share(hashes) <= NEAR
        if kept[i]:
            seen.add(hashes)
        tick(float(done[i]))
    return order[kept]


def leakage(
    spool: Spool,
    train: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    tick: Callable[[float], None],
) -> float:
    """The share of validation bytes in documents more than half of whose shingles stand in train, 0 to 1."""
    seen = Seen(spool.size)
    for i, document in enumerate(train, start=1):
        seen.add(shingles(spool[document]))
        tick(i / len(train))
    leaked = np.array([seen.share(shingles(spool[document])) > NEAR for document in validation])
    sizes = spool.sizes[validation]
    return float(sizes[leaked].sum() / sizes.sum())
