"""A set of 64-bit hashes in little memory that never misses a member, and says how often it takes another for one."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from nachim.data.hash import Words, mix

PROBES = 6
LANE = 64
LEAST_BITS = 10


class Bloom:
    """A Bloom filter whose probes for one hash lie in one 64-bit word (Putze, Sanders and Singler 2007): one look-up.

    `rate` is the probability that it takes a hash for a member that is none, counted from how full its words are.
    """

    def __init__(self, members: Words, rate: float) -> None:
        members = np.unique(members)
        bits = LEAST_BITS
        while _rate(len(members) / 2**bits) > rate:
            bits += 1
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, dtype=np.uint64)
        np.bitwise_or.at(self._table, *self._probe(members))
        taken = np.bincount(np.bitwise_count(self._table), minlength=LANE + 1)
        self.rate = float((taken * _hit(np.arange(LANE + 1))).sum() / len(self._table))

    @property
    def nbytes(self) -> int:
        """Bytes of its table."""
        return self._table.nbytes

    def has(self, hashes: Words) -> npt.NDArray[np.bool_]:
        """Which of `hashes` are members, or are taken for one."""
        word, wanted = self._probe(hashes)
        return (self._table[word] & wanted) == wanted

    def _probe(self, hashes: Words) -> tuple[Words, Words]:
        """The word of each hash, and its bits there: one for each of six fields of a second hash."""
        again = mix(hashes)
        wanted = np.zeros(len(hashes), np.uint64)
        for probe in range(PROBES):
            wanted |= np.uint64(1) << (again >> np.uint64(6 * probe) & np.uint64(LANE - 1))
        return hashes >> self._shift, wanted


def _hit(bits: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Probability that `PROBES` bits drawn with replacement are among `bits` that are set."""
    return (bits / LANE) ** PROBES


def _rate(load: float) -> float:
    """The rate to expect at `load` members a word, whose number is Poisson distributed."""
    count = np.arange(int(load + 12 * math.sqrt(load) + 12))
    log_share = count * math.log(max(load, 1e-12)) - load - np.array([math.lgamma(n + 1) for n in count])
    return float((np.exp(log_share) * _hit(LANE * (1 - (1 - 1 / LANE) ** (PROBES * count)))).sum())
