"""How new a text is beside a pool: the longest common subsequence of words, shared shingles, distance of vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.data.minhash import agreement, jaccard, signatures
from nachim.data.near import MARGIN
from nachim.data.passage import WORD
from nachim.data.shingle import grams, shingles

Vectors = npt.NDArray[np.floating]
Embed = Callable[[Sequence[str]], Vectors]
"""Texts to vectors of length 1, one in a row; a text without any feature has zeros."""
WIDTH = 2048
"""Buckets of hashed n-grams."""


@dataclass(frozen=True)
class Nearest:
    """The item of a pool that is most alike by some measure; `id` is empty where there is none."""

    score: float
    id: str


def words_of(text: str) -> list[str]:
    """Words in lower case, signs left out."""
    return [word for word in WORD.findall(text.lower()) if any(map(str.isalnum, word))]


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence of words: Hyyrö's bit-vector recurrence (2004), a word of it a bit."""
    where: dict[str, int] = {}
    for place, word in enumerate(one):
        where[word] = where.get(word, 0) | 1 << place
    return _common(len(one), where, other)


def _common(length: int, where: dict[str, int], other: Sequence[str]) -> int:
    whole = (1 << length) - 1
    row = whole
    for word in other:
        both = row & where.get(word, 0)
        row = ((row + both) | (row - both)) & whole
    return length - row.bit_count()


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """F-measure of the longest common subsequence: 2 L / (m + n) (Lin 2004, beta = 1); 0 where either is empty."""
    return 2 * common(one, other) / (len(one) + len(other)) if one and other else 0.0


def hashed(texts: Sequence[str]) -> Vectors:
    """Vectors of hashed words and pairs of words: 1 + log(count) in each of `WIDTH` buckets, of length 1."""
    raw, found = [text.encode("utf-8", "replace") for text in texts], np.zeros((len(texts), WIDTH))
    for n in (1, 2):
        hashes, owner = grams(raw, n, fill=False)
        np.add.at(found, (owner, (hashes % np.uint64(WIDTH)).astype(np.int64)), 1.0)
    return unit(np.where(found > 0, 1 + np.log(np.maximum(found, 1)), 0.0))


def unit(rows: Vectors) -> Vectors:
    """Each row divided by its length; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


class Pool:
    """Texts that were taken, and for a new one the nearest of them: by ROUGE-L, by 5-word shingles, by vectors (fp32).

    Shingles are compared exactly with those that MinHash says may be near, as duplicates are.
    """

    def __init__(self, embed: Embed = hashed) -> None:
        self.embed = embed
        self.ids: list[str] = []
        self._words: list[list[str]] = []
        self._texts: list[bytes] = []
        self._vectors: Vectors = np.zeros((0, 0), np.float32)
        self._signatures = signatures([])

    def add(self, ids: Sequence[str], instructions: Sequence[str], texts: Sequence[str]) -> None:
        """Take items in: of each its instruction, and the whole text."""
        if not ids:
            return
        raw = [text.encode("utf-8", "replace") for text in texts]
        vectors = self.embed(instructions).astype(np.float32)
        self._vectors = np.concatenate((self._vectors, vectors)) if self.ids else vectors
        self._signatures = np.concatenate((self._signatures, signatures(raw)))
        self._words += [words_of(text) for text in instructions]
        self._texts += raw
        self.ids += ids

    def rouge(self, instruction: str) -> Nearest:
        """The instruction with the highest ROUGE-L."""
        mine = words_of(instruction)
        where: dict[str, int] = {}
        for place, word in enumerate(mine):
            where[word] = where.get(word, 0) | 1 << place
        total = [max(1, len(mine) + len(words)) for words in self._words]
        scores = [2 * _common(len(mine), where, w) / n for w, n in zip(self._words, total, strict=True)]
        return self._nearest(scores)

    def cosine(self, instruction: str) -> Nearest:
        """The instruction whose vector is nearest, by cosine."""
        if not self.ids:
            return Nearest(0.0, "")
        return self._nearest(self._vectors @ self.embed([instruction])[0].astype(np.float32))

    def overlap(self, text: str) -> Nearest:
        """The text with the highest Jaccard similarity of shingles."""
        if not self.ids:
            return Nearest(0.0, "")
        raw = text.encode("utf-8", "replace")
        among = np.concatenate((self._signatures, signatures([raw])))
        estimate = agreement(among, len(self.ids), np.arange(len(self.ids)))
        likely = np.flatnonzero(estimate >= max(estimate.max() - MARGIN, 1e-9))
        mine = shingles(raw)
        exact = {int(one): jaccard(mine, shingles(self._texts[one])) for one in likely}
        best = max(exact, key=exact.__getitem__, default=None)
        return Nearest(0.0, "") if best is None else Nearest(exact[best], self.ids[best])

    def _nearest(self, scores: Sequence[float] | Vectors) -> Nearest:
        if not len(scores):
            return Nearest(0.0, "")
        best = int(np.argmax(scores))
        return Nearest(float(scores[best]), self.ids[best])
