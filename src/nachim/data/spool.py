"""The distinct documents of a corpus on disk: later stages read them in any order, any number of times."""

from __future__ import annotations

import hashlib
import os
import sys
import weakref
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nachim.spec.disk import replacing

DIGEST_BYTES = 32
CHUNK = 1 << 18
LEAST_SLOTS = 1 << 10


@dataclass(frozen=True, eq=False)
class Spool:
    """Document i stands in the open file `file` from ``offsets[i]`` to ``offsets[i + 1]``; `digests` [n, 4] is its
    SHA-256 as four 64-bit words.

    `duplicates` and `duplicate_bytes` count the documents left out for having the content of an earlier one.
    """

    file: int
    offsets: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint64]
    duplicates: int
    duplicate_bytes: int

    @property
    def size(self) -> int:
        """Bytes of all documents."""
        return int(self.offsets[-1])

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each document."""
        return np.diff(self.offsets)

    @property
    def content(self) -> str:
        """SHA-256 (hex) of the set of documents: whatever their order, files and folders."""
        order, told = np.lexsort(self.digests.T[::-1]), hashlib.sha256()
        for begin in range(0, len(order), CHUNK):
            told.update(self.digests[order[begin : begin + CHUNK]].astype(">u8"))
        return told.hexdigest()

    def __getitem__(self, i: int) -> bytes:
        begin, end = self.offsets[i : i + 2].tolist()
        return os.pread(self.file, end - begin, begin)


def spool(documents: Iterable[bytes], path: Path) -> Spool:
    """Write each document whose content is new to `path`. Raises UserError when the disk refuses."""
    offsets, seen = array("q", [0]), _Digests()
    duplicates = duplicate_bytes = 0
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for document in documents:
            if seen.add(hashlib.sha256(document).digest()):
                file.write(document)
                offsets.append(offsets[-1] + len(document))
            else:
                duplicates += 1
                duplicate_bytes += len(document)
    raw = os.open(path, os.O_RDONLY)
    made = Spool(raw, np.frombuffer(offsets, dtype=np.int64), seen.words(), duplicates, duplicate_bytes)
    weakref.finalize(made, os.close, raw)
    return made


class _Digests:
    """Different digests in the order of their coming: 32 bytes each, and 6 to 12 for a table of where they stand.

    The table has open addressing with linear probing: a slot holds the number of a digest, or -1.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._table = _slots(LEAST_SLOTS)

    def add(self, digest: bytes) -> bool:
        """Put `digest` in; whether it is new."""
        table, held = self._table, self._held
        mask = len(table) - 1
        slot = int.from_bytes(digest[:8], "little") & mask
        while (number := table[slot]) >= 0:
            if held.startswith(digest, number * DIGEST_BYTES):
                return False
            slot = (slot + 1) & mask
        table[slot] = len(held) // DIGEST_BYTES
        held += digest
        if 3 * len(held) > 2 * len(table) * DIGEST_BYTES:
            self._grow()
        return True

    def _grow(self) -> None:
        """A table of twice the size, filled in the order of coming."""
        size, count = 2 * len(self._table), len(self._held) // DIGEST_BYTES
        self._table = table = _slots(size)
        for begin in range(0, count, CHUNK):
            some = np.frombuffer(self._held[begin * DIGEST_BYTES : (begin + CHUNK) * DIGEST_BYTES], dtype="<u8")
            starts = some[:: DIGEST_BYTES // 8] & np.uint64(size - 1)
            for number, slot in enumerate(starts.tolist(), start=begin):
                while table[slot] >= 0:
                    slot = (slot + 1) & (size - 1)
                table[slot] = number

    def words(self) -> npt.NDArray[np.uint64]:
        """The digests as words [n, 4]: nothing can be added any more."""
        words = np.frombuffer(self._held, dtype=np.uint64)
        if sys.byteorder == "little":
            words.byteswap(inplace=True)
        return words.reshape(-1, DIGEST_BYTES // 8)


def _slots(size: int) -> array[int]:
    return array("i", [-1]) * size
