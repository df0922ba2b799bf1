"""Near duplicates: documents most of whose 5-word shingles already stand elsewhere in the corpus."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nachim.data.hash import Words, mix
from nachim.data.spool import Spool

SHINGLE_WORDS = 5
NEAR = 0.5
CHUNK_BYTES = 1 << 20
LEAST_BITS, MOST_BITS = 20, 33

# A word is a run of letters, digits, underscores and non-ASCII bytes, whatever its case; 0 separates words.
_ASCII = [ord(chr(b).lower()) if chr(b).isalnum() or chr(b) == "_" else 0 for b in range(128)]
_VALUE = np.array([*_ASCII, *range(128, 256)], dtype=np.uint64)
# Odd factors, so that a product loses nothing modulo 2^64. A word's 257th byte takes the factor of its first.
_IN_WORD = mix(np.arange(256, dtype=np.uint64)) | np.uint64(1)
_IN_SHINGLE = mix(np.arange(256, 256 + SHINGLE_WORDS, dtype=np.uint64)) | np.uint64(1)


def shingles(text: bytes) -> Words:
    """Sorted distinct 64-bit hashes of the 5-word shingles of `text`; a text of fewer words is one shingle.

    A long text is hashed in chunks of `CHUNK_BYTES` to bound memory, which costs it 4 shingles a chunk.
    """
    chunks = [_hashes(text[start : start + CHUNK_BYTES]) for start in range(0, len(text), CHUNK_BYTES)]
    return np.unique(np.concatenate(chunks)) if chunks else np.empty(0, np.uint64)


def _hashes(text: bytes) -> Words:
    value = _VALUE[np.frombuffer(text, dtype=np.uint8)]
    inside = value != 0
    starts = np.flatnonzero(inside[1:] & ~inside[:-1]) + 1
    if len(text) and inside[0]:
        starts = np.concatenate(([0], starts))
    if not len(starts):
        return np.empty(0, np.uint64)
    value = value[starts[0] :]
    starts = starts - starts[0]
    place = np.arange(len(value)) - np.repeat(starts, np.diff(starts, append=len(value)))
    words = mix(np.add.reduceat(value * _IN_WORD[place & 255], starts))
    if len(words) < SHINGLE_WORDS:
        words = np.pad(words, (0, SHINGLE_WORDS - len(words)))
    return mix(np.lib.stride_tricks.sliding_window_view(words, SHINGLE_WORDS) @ _IN_SHINGLE)


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
    seen, kept = Seen(len(spool.raw)), np.ones(len(order), dtype=bool)
    done = np.cumsum(spool.sizes[order]) / len(spool.raw)
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
    seen = Seen(len(spool.raw))
    for i, document in enumerate(train, start=1):
        seen.add(shingles(spool[document]))
        tick(i / len(train))
    leaked = np.array([seen.share(shingles(spool[document])) > NEAR for document in validation])
    sizes = spool.sizes[validation]
    return float(sizes[leaked].sum() / sizes.sum())
