"""The order of data as a pure function of (seed, index): no resuming, no process count changes it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from nachim.data.hash import Words, mix

ROUNDS = 4


def position(seed: int, index: npt.ArrayLike, n: int) -> npt.NDArray[np.int64]:
    """Which of `n` sequences stands at each global `index` (any shape, 0 or more); the same shape comes back.

    Indices k·n to k·n + n - 1 are epoch k: each sequence once, in that epoch's own order. Memory is O(1): a
    Feistel network over about √n x √n, walked on while it lands outside n (Black and Rogaway, CT-RSA 2002).
    """
    index = np.asarray(index, dtype=np.uint64)
    epoch, x = np.divmod(index.ravel(), np.uint64(n))
    key = mix(mix(np.full(1, seed % 2**64, dtype=np.uint64)) ^ epoch)
    side = math.isqrt(n - 1) + 1
    outside = np.ones(len(x), dtype=bool)
    while outside.any():
        x[outside] = _permute(x[outside], key[outside], side, -(-n // side))
        outside = x >= n
    return x.astype(np.int64).reshape(index.shape)


def _permute(x: Words, key: Words, width: int, height: int) -> Words:
    """A keyed permutation of width·height numbers: a half-round adds a hash of one coordinate to the other."""
    row, column = np.divmod(x, np.uint64(width))
    for step in range(ROUNDS):
        column = (column + mix(key + row + np.uint64(2 * step << 32)) % width) % width
        row = (row + mix(key + column + np.uint64(2 * step + 1 << 32)) % height) % height
    return row * np.uint64(width) + column
