"""Choosing text that looks like a target: importance resampling of hashed n-grams (DSIR, arXiv 2302.03169).

A text's features are its words and runs of up to `n` words, in lower case, each hashed by SHA-256 into one of `buckets`
buckets, as the published code does it. Of each bucket's share in the target, p, and in the raw text, q, a text's weight
is the sum over its features of log(p + 1e-8) - log(q + 1e-8) (section 3); adding Gumbel noise to the weights and taking
the greatest k draws k texts without replacement (section 3.1).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nachim.data.hash import Words, mix
from nachim.data.read import Report
from nachim.data.records import records, size_of
from nachim.data.shingle import batches, span_hashes
from nachim.data.stage import Drop, Joined, Outcome, Row, Shelf, Summary, WholeSet
from nachim.spec.error import UserError

SMOOTH = 1e-8
TABLE_BITS = 22
"""The table of known n-grams holds 4 M of them in 48 MiB, and forgets the one whose place another needs."""

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
Buckets = npt.NDArray[np.uint32]

_SPACE, _WORD, _SIGN = 0, 1, 2
_BLANK = ord(" ")


class Hasher:
    """Texts to the buckets of their n-grams, many texts at once.

    SHA-256 is taken once of each n-gram: the others are known by a 64-bit hash. `buckets` is at least 2.
    """

    def __init__(self, buckets: int = 10_000, n: int = 2) -> None:
        if not 2 <= buckets <= 1 << 31 or n < 1:
            raise UserError(f"{buckets} buckets of runs of {n} words tell nothing apart: give at least 2 and 1")
        self.buckets, self.n = buckets, n
        self._known = np.zeros(1 << TABLE_BITS, dtype=np.uint64)
        self._bucket = np.zeros(1 << TABLE_BITS, dtype=np.uint32)

    def of(self, texts: Sequence[str]) -> tuple[Buckets, Indices]:
        """The bucket of every n-gram, and the text that it stands in; grouped by length, in order within each."""
        if not texts:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        words = _Words(texts)
        found, owners = [], []
        for n in range(1, self.n + 1):
            last = max(0, len(words.hashes) - n + 1)
            grams = words.hashes[:last]
            for k in range(1, n):
                grams = mix(grams) + words.hashes[k : last + k]
            inside = np.flatnonzero(words.owner[:last] == words.owner[n - 1 :][:last])
            grams = grams if len(inside) == last else grams[inside]
            found.append(self._lookup(grams, words, inside, n))
            owners.append(words.owner[inside])
        return np.concatenate(found), np.concatenate(owners)

    def counts(self, texts: Iterable[str]) -> Indices:
        """How many n-grams of all texts fall into each bucket [buckets]."""
        total = np.zeros(self.buckets, dtype=np.int64)
        for batch in batches(texts, len):
            total += np.bincount(self.of(batch)[0], minlength=self.buckets)
        return total

    def _lookup(self, grams: Words, words: _Words, first: Indices, n: int) -> Buckets:
        slot = (grams >> np.uint64(64 - TABLE_BITS)).view(np.int64)
        buckets = self._bucket[slot]
        unknown = np.flatnonzero(self._known[slot] != grams)
        distinct, one, which = np.unique(grams[unknown], return_index=True, return_inverse=True)
        made = self._hashed(words.runs(first[unknown[one]], n))
        buckets[unknown] = made[which]
        places = (distinct >> np.uint64(64 - TABLE_BITS)).view(np.int64)
        self._known[places], self._bucket[places] = distinct, made
        return buckets

    def _hashed(self, runs: list[bytes]) -> Buckets:
        """SHA-256 of each run, a number of 256 bits, modulo the buckets."""
        sha256 = hashlib.sha256
        digits = np.frombuffer(b"".join([sha256(run).digest() for run in runs]), dtype=">u4").reshape(-1, 8)
        rest = np.zeros(len(runs), dtype=np.uint64)
        for digit in digits.T.astype(np.uint64):
            rest = ((rest << np.uint64(32)) + digit) % np.uint64(self.buckets)
        return rest.astype(np.uint32)


class _Words:
    """The words of texts in lower case: runs of word characters, and runs of other signs that are no white space.

    `owner` is the text of each word and `hashes` its hash; they stand in `line`, joined by single spaces.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        raws = [text.lower().encode("utf-8", "surrogatepass") for text in texts]
        raw = b"\n".join(raws)
        kind = np.zeros(len(raw) + 2, dtype=np.uint8)
        kind[1:-1] = _kinds_of(raw)
        turns = np.flatnonzero(kind[1:] != kind[:-1])
        # a turn begins a word unless white space follows, and ends one unless white space stands before
        starts = turns[kind[turns + 1] != _SPACE]
        ends = turns[kind[turns] != _SPACE]
        limits = np.cumsum([0, *(len(one) + 1 for one in raws)])
        self.owner = np.repeat(np.arange(len(raws)), np.diff(np.searchsorted(starts, limits)))
        self._ends = np.cumsum(ends - starts + 1)
        self._starts = self._ends - (ends - starts + 1)
        size = int(self._ends[-1]) if len(self._ends) else 0
        line, lettered = np.full(size + 8, _BLANK, dtype=np.uint8), np.ones(size, dtype=bool)
        lettered[self._ends - 1] = False
        line[:size][lettered] = np.frombuffer(raw, dtype=np.uint8)[kind[1:-1] != _SPACE]
        self._line = line.tobytes()
        self.hashes = span_hashes(line, self._starts, self._ends - 1 - self._starts)

    def runs(self, first: Indices, n: int) -> list[bytes]:
        """`n` words in turn, joined by single spaces, from each word `first` on."""
        line, starts, ends = self._line, self._starts[first], self._ends[first + n - 1] - 1
        return [line[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _kinds_of(raw: bytes) -> npt.NDArray[np.uint8]:
    """What each byte of UTF-8 is of: white space, a word, or another sign."""
    if raw.isascii():
        return _kinds()[np.frombuffer(raw, dtype=np.uint8)]
    points = np.frombuffer(raw.decode("utf-8", "surrogatepass").encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.repeat(_kinds()[points], 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF))


@functools.cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Of every code point: white space, a character of words, or another sign, as regular expressions have it."""
    everything = "".join(map(chr, range(0x110000)))
    kinds = np.full(len(everything), _SIGN, dtype=np.uint8)
    for kind, pattern in ((_WORD, r"\w+"), (_SPACE, r"\s+")):
        for run in re.finditer(pattern, everything):
            kinds[run.start() : run.end()] = kind
    return kinds


def log_ratio(target: Indices, raw: Indices) -> Weights:
    """What each bucket adds to a text's weight [buckets], in nats, from counts of features in the target and the raw.

    Raises UserError where one of them has no feature.
    """
    for name, counts in (("target", target), ("raw text", raw)):
        if not counts.sum():
            raise UserError(f"the {name} has not one word: nothing can be resampled")
    ratio: Weights = np.log(target / target.sum() + SMOOTH) - np.log(raw / raw.sum() + SMOOTH)
    return ratio


def weights(ratio: Weights, buckets: Buckets, owner: Indices, texts: int) -> Weights:
    """The log importance weight of each text [texts], in nats: the sum over its features."""
    return np.bincount(owner, weights=ratio[buckets], minlength=texts)


def words_of(features: Indices, n: int) -> Indices:
    """How many words texts have, from how many features: n·words - n(n-1)/2 where there are n words or more."""
    words: Indices = (features + n * (n - 1) // 2) // n
    return words


def draw(log_weights: Weights, k: int, seed: int) -> Indices:
    """`k` of the texts without replacement, in order: the greatest log weights after standard Gumbel noise.

    Raises UserError where there are fewer texts.
    """
    if not 0 < k <= len(log_weights):
        raise UserError(f"{k} texts cannot be drawn from {len(log_weights)}: ask for 1 to {len(log_weights)}")
    noisy = log_weights + np.random.default_rng(seed).gumbel(size=len(log_weights))
    return np.sort(np.argpartition(-noisy, k - 1)[:k])


@dataclass(frozen=True, kw_only=True)
class Resample(WholeSet):
    """Draw `rows` rows that look like the text of `target`, a file of JSON lines, by importance resampling.

    Rows of fewer than `least_words` words cannot be drawn: their weights say little. Rows drawn carry `resample`, their
    log importance weight in nats.
    """

    target: str
    rows: int
    buckets: int = 10_000
    n: int = 2
    least_words: int = 100
    seed: int = 0
    text_column: str = "text"

    def check(self) -> None:
        self.require_positive("rows")
        if not 2 <= self.buckets <= 1 << 16:
            self.refuse("buckets", f"is {self.buckets}; give 2 to 65,536")
        self.require_positive("n")

    def files(self) -> tuple[Path, ...]:
        return (Path(self.target).expanduser(),)

    def part(self, rows: Sequence[Row]) -> Summary:
        hasher, found, sizes = _hasher(self), [np.empty(0, np.uint16)], [np.empty(0, np.int64)]
        for batch in batches((row["text"] for row in rows), len):
            buckets, owner = hasher.of(batch)
            found.append(buckets[np.argsort(owner, kind="stable")].astype(np.uint16))
            sizes.append(np.bincount(owner, minlength=len(batch)))
        return {"buckets": np.concatenate(found), "sizes": np.concatenate(sizes)}

    def join(self, shelf: Shelf) -> Joined:
        raw, sizes = np.zeros(self.buckets, dtype=np.int64), []
        for i in range(shelf.count):
            summary = shelf.summary(i)
            raw += np.bincount(summary["buckets"], minlength=self.buckets)
            sizes.append(summary["sizes"])
            shelf.tick((i + 1) / (2 * shelf.count))
        ratio = log_ratio(self._target(), raw)
        found = []
        for i, size in enumerate(sizes):
            owner = np.repeat(np.arange(len(size)), size)
            found.append(weights(ratio, shelf.summary(i)["buckets"], owner, len(size)))
            shelf.tick(0.5 + (i + 1) / (2 * shelf.count))
        able = np.flatnonzero(words_of(np.concatenate(sizes), self.n) >= self.least_words)
        if len(able) < self.rows:
            self.refuse("rows", f"is {self.rows}; {len(able)} rows have {self.least_words} words or more")
        chosen = np.zeros(sum(map(len, sizes)), dtype=bool)
        chosen[able[draw(np.concatenate(found)[able], self.rows, self.seed)]] = True
        by_shard = np.split(chosen, np.cumsum([len(size) for size in sizes])[:-1])
        decisions = [[weight.tolist(), drawn.tolist()] for weight, drawn in zip(found, by_shard, strict=True)]
        return Joined(decisions, {"candidates": len(able), "drawn": self.rows})

    def apply(self, rows: Sequence[Row], decision: Any) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for row, weight, drawn in zip(rows, *decision, strict=True):
            row["resample"] = weight
            outcomes.append(row if drawn else Drop("not drawn", row=row))
        return outcomes

    def _target(self) -> Indices:
        path = self.files()[0]
        size_of(path)
        return _hasher(self).counts(record.text.decode() for record in records(path, self.text_column, Report()))


@functools.cache
def _hasher(stage: Resample) -> Hasher:
    return Hasher(stage.buckets, stage.n)
