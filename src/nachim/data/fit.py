"""Documents to sequences of one length without cutting those that fit: best-fit decreasing (arXiv 2404.10830)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def best_fit(lengths: Indices, capacity: int) -> Indices:
    """The bin [n] of each piece of 1 to `capacity` tokens: longest first, into the fullest bin that still takes it.

    Of bins with the same room the last one opened is taken; a new one is opened where none has room. Takes
    O(n log n) for the order and O(capacity / 64) a piece.
    """
    bins = np.empty(len(lengths), dtype=np.int64)
    room: list[list[int]] = [[] for _ in range(capacity + 1)]
    there, count = 0, 0  # bit r of `there`: some bin has room for r tokens
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        fits = there >> length
        if fits:
            left = length + (fits & -fits).bit_length() - 1
            chosen = room[left].pop()
            if not room[left]:
                there ^= 1 << left
        else:
            left, chosen, count = capacity, count, count + 1
        bins[piece] = chosen
        left -= length
        if left:
            room[left].append(chosen)
            there |= 1 << left
    return bins


@dataclass(frozen=True, eq=False)
class Packed:
    """Pieces of documents in bins: piece i is the tokens from ``starts[i]``, ``lengths[i]`` of them.

    Bin b has the pieces from ``bins[b]`` to ``bins[b + 1]``. `cut` counts the documents that had to be cut.
    """

    starts: Indices
    lengths: Indices
    bins: Indices
    cut: int


def pack(starts: Indices, total: int, capacity: int) -> Packed:
    """The documents that begin at `starts` of `total` tokens, in bins of `capacity`.

    A longer document is cut into full pieces and what is left of it.
    """
    sizes = np.diff(starts, append=total)
    pieces = -(-sizes // capacity)
    owner = np.repeat(np.arange(len(starts)), pieces)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begins = starts[owner] + place * capacity
    lengths = np.minimum(capacity, starts[owner] + sizes[owner] - begins)
    chosen = best_fit(lengths, capacity)
    order = np.argsort(chosen, kind="stable")
    edges = np.concatenate(([0], np.cumsum(np.bincount(chosen))))
    return Packed(begins[order], lengths[order], edges, int((pieces > 1).sum()))
