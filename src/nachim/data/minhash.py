"""MinHash: the Jaccard similarity of two texts' shingles, estimated from short signatures (Broder 1997).

A signature has `ROUNDS` rounds of `BINS` bins: a round hashes every shingle once more, deals it to a bin, and keeps
the least of each (one permutation hashing, Li, Owen and Zhang 2012), so that a shingle is touched 8 times, not 128. An
empty bin takes the value of the next one that is not (Shrivastava and Li 2014). Signatures are cut into `BANDS` bands
of `ROWS` values, each of another round; texts that agree in a whole band are candidates. At a similarity of 0.8 two
texts are missed with probability (1 - 0.8^5)^25 = 5e-5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nachim.data.hash import Words, mix
from nachim.data.shingle import SHINGLE_WORDS, grams

ROUNDS, BINS = 8, 16
VALUES = ROUNDS * BINS
ROWS = 5
BANDS = VALUES // ROWS
NOTHING = np.uint32(2**32 - 1)

Signatures = npt.NDArray[np.uint32]

_ROUND = mix(np.arange(1 << 20, (1 << 20) + ROUNDS, dtype=np.uint64)) | np.uint64(1)
_ROW = mix(np.arange(1 << 21, (1 << 21) + ROWS, dtype=np.uint64)) | np.uint64(1)
BIN_BITS = BINS.bit_length() - 1


def signatures(texts: Sequence[bytes]) -> Signatures:
    """Signatures [len(texts), VALUES]; a text without a word has `NOTHING` throughout."""
    hashes, text = grams(texts, SHINGLE_WORDS)
    least = np.full((len(texts), ROUNDS, BINS), NOTHING, dtype=np.uint32)
    flat = least.reshape(-1)
    for number in range(ROUNDS):
        again = hashes * _ROUND[number]
        place = (again >> np.uint64(64 - BIN_BITS)).astype(np.int64)
        value = (again >> np.uint64(64 - BIN_BITS - 32)).astype(np.uint32)
        np.minimum.at(flat, text * VALUES + number * BINS + place, value)
    _fill(least)
    # values of one bin stand together, each of another round: a band is made of different rounds
    return np.ascontiguousarray(least.swapaxes(1, 2)).reshape(len(texts), VALUES)


def _fill(least: npt.NDArray[np.uint32]) -> None:
    """Give empty bins the value of the next bin of their round that has one."""
    for _ in range(BINS - 1):
        empty = least == NOTHING
        if not empty.any():
            return
        least[empty] = np.roll(least, -1, axis=2)[empty]


def band_keys(found: Signatures, band: int) -> Words:
    """What texts that agree in a band share: one hash a text."""
    rows = found[:, band * ROWS : (band + 1) * ROWS].astype(np.uint64)
    return mix((rows * _ROW).sum(axis=1, dtype=np.uint64))


def agreement(found: Signatures, one: int, others: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The estimated similarity of text `one` to `others`."""
    return alike(found[others], found[one])


def alike(found: Signatures, one: Signatures) -> npt.NDArray[np.float64]:
    """The estimated similarity of texts with the signatures `found` [n, VALUES] to that with `one` [VALUES] alone: the
    share of values in which they agree."""
    share: npt.NDArray[np.float64] = (found == one).mean(axis=1)
    return share


def jaccard(one: Words, other: Words) -> float:
    """The similarity itself, of two sorted sets of shingles: |both| / |either|; 0 where one is empty."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - both
    return both / either if len(one) and len(other) else 0.0
