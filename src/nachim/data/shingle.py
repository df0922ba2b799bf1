"""Texts to hashes of their n-grams of words, many texts at once: what duplicates and contamination are found by.

A word is a run of letters, digits, underscores and non-ASCII bytes, ASCII letters in any case. A character of three
or four UTF-8 bytes (Hangul, Han, kana, Thai, ...) is a word of its own: such scripts need not put spaces between words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nachim.data.hash import Words, mix

SHINGLE_WORDS = 5
BATCH_BYTES = 1 << 20
PART_BYTES = 1 << 20
OVERLAP_BYTES = 1 << 12
"""What parts of a long text share: some hundred words."""
LONG_LEAD = 0xE0
"""The least first byte of a UTF-8 character of three bytes or more."""

Indices = npt.NDArray[np.int64]
Hashes = tuple[Words, Indices]
"""Hashes in order, and the text that each is of."""
T = TypeVar("T")

_ASCII = [ord(chr(b).lower()) if chr(b).isalnum() or chr(b) == "_" else 0 for b in range(128)]
_LETTER = np.array([*_ASCII, *range(128, 256)], dtype=np.uint8)
_LOW_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], dtype=np.uint64)


def shingles(text: bytes) -> Words:
    """Sorted distinct 64-bit hashes of the 5-word shingles of `text`; a text of fewer words is one shingle."""
    return np.unique(grams([text], SHINGLE_WORDS)[0])


def grams(texts: Sequence[bytes], n: int, fill: bool = True) -> Hashes:
    """Hashes of every n-gram of words, and the text [0, len(texts)) that each stands in, in order.

    A text of fewer words is one n-gram, filled up with nothing, or none without `fill`; one without a word has none.
    """
    return _by_parts(texts, lambda parts: _grams(parts, n, fill))


def windows(texts: Sequence[bytes], n: int) -> Hashes:
    """As `grams`, of every run of `n` bytes of the texts with their words joined by single separators."""
    return _by_parts(texts, lambda parts: _windows(parts, n))


def _by_parts(texts: Sequence[bytes], hashed: Callable[[list[bytes]], Hashes]) -> Hashes:
    """What `hashed` gives for all texts, some at a time.

    Texts beyond `PART_BYTES` are hashed in overlapping parts, to bound memory: what lies in an overlap comes twice.
    """
    found = [(np.empty(0, np.uint64), np.empty(0, np.int64))]
    owners = [(i, part) for i, text in enumerate(texts) for part in _parts(text)]
    for some in batches(owners, lambda owned: len(owned[1])):
        hashes, place = hashed([part for _, part in some])
        found.append((hashes, np.array([i for i, _ in some])[place]))
    hashes, owner = (np.concatenate(column) for column in zip(*found, strict=True))
    return hashes, owner


def _parts(text: bytes) -> Iterator[bytes]:
    """The text, or parts of it that begin and end between words where there is such a place."""
    start = 0
    while len(text) - start > PART_BYTES:
        end = _between(text, start + PART_BYTES)
        yield text[start:end]
        start = _between(text, end - OVERLAP_BYTES)
    yield text[start:]


def _between(text: bytes, at: int) -> int:
    """The first byte from `at` on that belongs to no word, or `at` where the next `OVERLAP_BYTES` have none."""
    letter = _LETTER[np.frombuffer(text[at : at + OVERLAP_BYTES // 2], dtype=np.uint8)]
    return at + int(np.argmin(letter != 0))


def _grams(texts: Sequence[bytes], n: int, fill: bool) -> Hashes:
    words, text = _words(texts)
    counts = np.bincount(text, minlength=len(texts))
    short = np.flatnonzero((counts > 0) & (counts < n))
    if fill and len(short):
        words, text = _filled(words, text, counts, short, n)
    last = max(0, len(words) - n + 1)
    factors, hashes = _factors(n), np.zeros(last, np.uint64)
    for k in range(n):
        hashes += words[k : last + k] * factors[k]
    inside = text[:last] == text[n - 1 :]
    return mix(hashes[inside]), text[:last][inside]


def _windows(texts: Sequence[bytes], n: int) -> Hashes:
    """A window is hashed by eight bytes at a time, the last eight of which may overlap those before."""
    letter = _LETTER[np.frombuffer(b"\0".join(texts) + b"\0", dtype=np.uint8)]
    text = np.repeat(np.arange(len(texts)), [len(one) + 1 for one in texts])
    keep = (letter != 0) | np.concatenate(([False], letter[:-1] != 0))
    letter, text = letter[keep], text[keep]
    last = max(0, len(letter) - n + 1)
    eight = np.lib.stride_tricks.sliding_window_view(np.concatenate((letter, np.zeros(8, np.uint8))), 8)
    lanes = mix(np.ascontiguousarray(eight).view("<u8")[:, 0] & _LOW_BYTES[min(n, 8)])
    offsets = [*range(0, n - 8, 8), max(0, n - 8)]
    factors, hashes = _factors(len(offsets)), np.zeros(last, np.uint64)
    for factor, offset in zip(factors, offsets, strict=True):
        hashes += lanes[offset : last + offset] * factor
    inside = text[:last] == text[n - 1 :][:last]
    return mix(hashes[inside]), text[:last][inside]


def _words(texts: Sequence[bytes]) -> Hashes:
    """Hashes of all words, and the text each stands in."""
    letter = _LETTER[np.frombuffer(b"\0".join(texts) + bytes(9), dtype=np.uint8)]
    inside = letter != 0
    alone = letter >= LONG_LEAD
    begins = inside[1:] & (~inside[:-1] | alone[1:])
    starts = np.flatnonzero(begins) + 1
    if inside[0]:
        starts = np.concatenate(([0], starts))
    ends = np.flatnonzero(inside[:-1] & (~inside[1:] | alone[1:])) + 1
    ends_of_text = np.cumsum([len(text) + 1 for text in texts])
    return span_hashes(letter, starts, ends - starts), np.searchsorted(ends_of_text, starts, side="right")


def span_hashes(letter: npt.NDArray[np.uint8], starts: Indices, left: Indices) -> Words:
    """A hash of each run of `left` bytes of `letter`, eight at a time; eight more bytes stand after the last."""
    eight = np.lib.stride_tricks.as_strided(letter, (len(letter) - 8, 8), (1, 1))
    hashes, at, which = np.zeros(len(starts), np.uint64), starts, np.arange(len(starts))
    while len(which):
        value = np.ascontiguousarray(eight[at]).view("<u8")[:, 0] & _LOW_BYTES[np.minimum(left, 8)]
        hashes[which] = mix(hashes[which] ^ value)
        more = left > 8
        which, at, left = which[more], at[more] + 8, left[more] - 8
    return hashes


def _filled(words: Words, text: Indices, counts: Indices, short: Indices, n: int) -> Hashes:
    """With words of nothing after the last of every text in `short`, up to `n` words."""
    lack = n - counts[short]
    places = np.repeat(np.cumsum(counts)[short], lack)
    return np.insert(words, places, np.uint64(0)), np.insert(text, places, np.repeat(short, lack))


@functools.cache
def _factors(n: int) -> Words:
    """Odd factors, so that a product loses nothing modulo 2^64."""
    return mix(np.arange(256, 256 + n, dtype=np.uint64)) | np.uint64(1)


def batches(items: Iterable[T], size_of: Callable[[T], int], size: int = BATCH_BYTES) -> Iterator[list[T]]:
    """The items in lists of about `size` bytes."""
    held: list[T] = []
    total = 0
    for item in items:
        held.append(item)
        total += size_of(item)
        if total >= size:
            yield held
            held, total = [], 0
    if held:
        yield held
