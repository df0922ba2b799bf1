"""Texts on disk with what duplicates are told by, so that memory holds a few bytes of each, however many there are.

A folder takes the texts and their ids, their digests, their signatures (512 bytes a text) and the keys of their bands
(200 bytes), each in a file of its own. A file is read as a whole, one at a time, or at the place of one text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from nachim.data.hash import Words
from nachim.data.minhash import BANDS, NOTHING, VALUES, Signatures, band_keys
from nachim.data.records import Id

DIGEST_BYTES = 16
PART_BITS = 18
"""At a time the keys of some 2^18 texts are sorted."""
CHUNK = 1 << 18

Keep = Literal["longest", "first"]
Indices = npt.NDArray[np.signedinteger[Any]]


class Strip:
    """Strings of bytes one after another in a file, read by their number; where they end stands in a file beside it."""

    def __init__(self, path: Path) -> None:
        self._ends_path = path.with_name(f"{path.name}.ends")
        self._open = contextlib.ExitStack()
        self._file, self._ends = (self._open.enter_context(one.open("w+b")) for one in (path, self._ends_path))
        self._size = 0
        self._ends.write(bytes(8))

    def add(self, strings: Sequence[bytes]) -> None:
        """Put `strings` behind those that are there."""
        self._file.writelines(strings)
        ends = self._size + np.cumsum(list(map(len, strings)), dtype=np.int64)
        self._ends.write(ends.tobytes())
        self._size = int(ends[-1]) if len(ends) else self._size

    def seal(self) -> None:
        """Nothing more comes: from here on it is read."""
        self._file.flush()
        self._ends.flush()

    def __getitem__(self, i: int) -> bytes:
        begin, end = np.frombuffer(os.pread(self._ends.fileno(), 16, 8 * i), dtype=np.int64).tolist()
        return os.pread(self._file.fileno(), end - begin, begin)

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each string."""
        return np.diff(np.fromfile(self._ends_path, dtype=np.int64))

    def close(self) -> None:
        """Let go of the files."""
        self._open.close()


class Gathered:
    """Texts with their ids, and what duplicates are told by. Use it in a ``with`` block; its `folder` is left there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._open = folder, contextlib.ExitStack()
        self._texts, self._ids = (self._strip(name) for name in ("texts", "ids"))
        names = ("signatures", "digests", "best", *map(_keys_of, range(BANDS)))
        self._columns = {name: self._open.enter_context((folder / name).open("w+b")) for name in names}
        self._worded = bytearray()

    def _strip(self, name: str) -> Strip:
        return self._open.enter_context(contextlib.closing(Strip(self._folder / name)))

    def __enter__(self) -> Gathered:
        return self

    def __exit__(self, *failure: object) -> None:
        self._open.close()

    def __len__(self) -> int:
        return len(self._worded)

    def __getitem__(self, i: int) -> bytes:
        return self._texts[i]

    def id(self, i: int) -> Id:
        """The id of text i."""
        found: Id = json.loads(self._ids[i])
        return found

    def add(
        self,
        texts: Sequence[bytes],
        ids: Sequence[Id],
        signatures: Signatures,
        digests: npt.NDArray[np.uint64],
        best: npt.NDArray[np.float64],
    ) -> None:
        """Take texts in, with the signature of each, its digest [n, 2] and the score that it is preferred by [n]."""
        self._texts.add(texts)
        self._ids.add([json.dumps(one).encode() for one in ids])
        columns: dict[str, npt.NDArray[Any]] = {"signatures": signatures, "digests": digests, "best": best}
        columns |= {_keys_of(band): band_keys(signatures, band) for band in range(BANDS)}
        for name, column in columns.items():
            self._columns[name].write(column.tobytes())
        self._worded += (signatures[:, 0] != NOTHING).tobytes()

    def seal(self) -> None:
        """Nothing more comes: from here on it is read."""
        self._texts.seal()
        self._ids.seal()
        for file in self._columns.values():
            file.flush()

    @property
    def worded(self) -> npt.NDArray[np.bool_]:
        """Which texts have a word."""
        return np.frombuffer(self._worded, dtype=np.bool_)

    def numbers(self) -> Indices:
        """0, 1, 2, ... of all texts, in the fewest bytes that hold them."""
        return np.arange(len(self), dtype=np.int32 if len(self) < 1 << 31 else np.int64)

    def ranked(self, keep: Keep) -> Indices:
        """The order of preference [n]: 0 has the highest score, and of equal ones is the longest, then the first."""
        best, sizes = np.fromfile(self._folder / "best"), self._texts.sizes()
        np.negative(best, out=best)
        np.negative(sizes, out=sizes)
        order = np.lexsort((sizes, best) if keep == "longest" else (best,))
        numbers = self.numbers()
        rank = np.empty_like(numbers)
        rank[order] = numbers
        return rank

    def same(self, rank: Indices) -> Indices:
        """For each text the preferred one of those that equal it."""
        digests = np.fromfile(self._folder / "digests", dtype=np.uint64).reshape(-1, DIGEST_BYTES // 8)
        order = np.lexsort((rank, *digests.T))
        first, head, last = np.empty_like(rank), -1, None
        for begin in range(0, len(order), CHUNK):
            part = order[begin : begin + CHUNK]
            own = digests[part]
            new = np.ones(len(part), dtype=bool)
            new[1:] = (own[1:] != own[:-1]).any(axis=1)
            new[0] = last is None or bool((own[0] != last).any())
            heads = np.concatenate(([head], part[new]))[np.cumsum(new)]
            first[part], head, last = heads, int(heads[-1]), own[-1]
        return first

    def signature(self, i: int) -> Signatures:
        """The signature of text i [VALUES]."""
        size = VALUES * np.dtype(np.uint32).itemsize
        return np.frombuffer(os.pread(self._columns["signatures"].fileno(), size, size * i), dtype=np.uint32)

    def keys(self, band: int) -> Words:
        """What texts that agree in a band share [n]: a hash of each."""
        return np.fromfile(self._folder / _keys_of(band), dtype=np.uint64)

    def buckets(self, band: int, among: npt.NDArray[np.bool_], rank: Indices) -> Iterator[Indices]:
        """Those of the texts `among` that share a key with another, key by key, each in the order of preference.

        Keys come in ascending order, those with the same first bits at a time.
        """
        keys = self.keys(band)
        bits = max(0, (len(keys) - 1).bit_length() - PART_BITS)
        lead = (keys >> np.uint64(63 - bits) >> np.uint64(1)).astype(np.uint16)
        for number in range(1 << bits):
            yield from _shared(keys, np.flatnonzero(among & (lead == number)).astype(rank.dtype), rank)


def _keys_of(band: int) -> str:
    return f"keys{band:02}"


def _shared(keys: Words, texts: Indices, rank: Indices) -> Iterator[Indices]:
    """As `Gathered.buckets`, of some texts."""
    own = keys[texts]
    order = np.lexsort((rank[texts], own))
    texts, own = texts[order], own[order]
    again = own[1:] == own[:-1]
    begins = np.flatnonzero(again & ~np.concatenate(([False], again[:-1])))
    ends = np.flatnonzero(again & ~np.concatenate((again[1:], [False]))) + 2
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        yield texts[begin:end]


def digests(texts: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """What texts that are the same share [n, 2]: half of each one's SHA-256."""
    raw = b"".join(hashlib.sha256(text).digest()[:DIGEST_BYTES] for text in texts)
    return np.frombuffer(raw, dtype=np.uint64).reshape(-1, DIGEST_BYTES // 8)
