"""The distinct documents of a corpus on disk: later stages read them in any order, any number of times."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nachim.spec.disk import replacing


@dataclass(frozen=True, eq=False)
class Spool:
    """Document i is ``raw[offsets[i]:offsets[i + 1]]``; `digests` [n, 4] is its SHA-256 as four 64-bit words.

    `duplicates` and `duplicate_bytes` count the documents left out for having the content of an earlier one.
    """

    raw: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint64]
    duplicates: int
    duplicate_bytes: int

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each document."""
        return np.diff(self.offsets)

    @property
    def content(self) -> str:
        """SHA-256 (hex) of the set of documents: whatever their order, files and folders."""
        words = self.digests[np.lexsort(self.digests.T[::-1])]
        return hashlib.sha256(words.astype(">u8").tobytes()).hexdigest()

    def __getitem__(self, i: int) -> bytes:
        return self.raw[self.offsets[i] : self.offsets[i + 1]].tobytes()


def spool(documents: Iterable[bytes], path: Path) -> Spool:
    """Write each document whose content is new to `path`. Raises UserError when the disk refuses."""
    offsets, digests, seen = array("q", [0]), bytearray(), set[bytes]()
    duplicates = duplicate_bytes = 0
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for document in documents:
            digest = hashlib.sha256(document).digest()
            if digest in seen:
                duplicates += 1
                duplicate_bytes += len(document)
                continue
            seen.add(digest)
            digests += digest
            file.write(document)
            offsets.append(offsets[-1] + len(document))
    words = np.frombuffer(digests, dtype=">u8").reshape(-1, 4).astype(np.uint64)
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    return Spool(raw, np.array(offsets, dtype=np.int64), words, duplicates, duplicate_bytes)
