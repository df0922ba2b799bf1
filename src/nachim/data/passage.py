"""One text as its rules look at it: words, lines, paragraphs, and which runs of words come again; each made once."""

from __future__ import annotations

import functools
import re
from collections import Counter

import numpy as np
import numpy.typing as npt

# Chinese characters and kana stand for words without spaces between them.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+(?:['’][^\W{_ALONE}]+)*|[^\w\s]+")
"""A run of letters, digits and underscores with its apostrophes; one Han or kana character; a run of other signs."""
_ASCII_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s\x1c-\x1f]+", re.ASCII)
"""The same in text of ASCII alone, and faster."""
TERMINAL = ".!?…。．｡！？؟۔।॥։።။។"
"""Marks that end sentences, in Latin, Chinese, Japanese, Arabic, Indic, Armenian, Ethiopic, Burmese, Khmer."""
_SENTENCE_END = re.compile(r"[.!?…؟۔।॥։።။។]+[\"'”’)\]]*(?=\s|$)|[。．｡！？]+[」』”’）]*")
_PARAGRAPH = re.compile(r"\n{2,}")
_NEWLINES = re.compile(r"\n+")

Indices = npt.NDArray[np.int64]


class Passage:
    """A text, and views of it that rules share."""

    def __init__(self, text: str) -> None:
        self.text = text

    @functools.cached_property
    def words(self) -> list[str]:
        """Words and runs of signs, in order (`WORD`)."""
        return (_ASCII_WORD if self.text.isascii() else WORD).findall(self.text)

    @functools.cached_property
    def counts(self) -> Counter[str]:
        """How often each word stands in the text, in the order of first use."""
        return Counter(self.words)

    @functools.cached_property
    def spoken(self) -> dict[str, int]:
        """The same of words that have a letter or a digit."""
        return {word: count for word, count in self.counts.items() if any(map(str.isalnum, word))}

    @functools.cached_property
    def lines(self) -> list[str]:
        """What line breaks of every kind part."""
        return self.text.splitlines()

    @functools.cached_property
    def written(self) -> list[str]:
        """What newlines part, where there is more than white space."""
        return [line for line in self.text.split("\n") if line.strip()]

    @functools.cached_property
    def blocks(self) -> list[str]:
        """What runs of newlines part."""
        return _NEWLINES.split(self.text)

    @functools.cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines part."""
        return _PARAGRAPH.split(self.text.strip())

    @functools.cached_property
    def ids(self) -> Indices:
        """Each word as its place among the distinct ones."""
        place = {word: i for i, word in enumerate(self.counts)}
        return np.array([place[word] for word in self.words], dtype=np.int64)

    @functools.cached_property
    def ends(self) -> Indices:
        """Characters of words before each word, and of all: [words + 1]."""
        return np.cumsum([0, *map(len, self.words)])

    def repeated(self, n: int) -> tuple[Indices, Indices]:
        """Where runs of `n` words begin that stand twice or more, in order; and a number for each distinct run."""
        while len(self._repeated) < n:
            self._repeated.append(self._longer(*self._repeated[-1], len(self._repeated) + 1))
        return self._repeated[n - 1]

    @functools.cached_property
    def _repeated(self) -> list[tuple[Indices, Indices]]:
        return [_alike(np.arange(len(self.ids)), self.ids)]

    def _longer(self, places: Indices, groups: Indices, n: int) -> tuple[Indices, Indices]:
        """A run can only come again where the run that is one word shorter does."""
        inside = places + n <= len(self.ids)
        places, groups = places[inside], groups[inside]
        return _alike(places, groups * max(1, len(self.counts)) + self.ids[places + n - 1])


def _alike(places: Indices, groups: Indices) -> tuple[Indices, Indices]:
    """Those places whose group others share, and their groups, numbered from 0."""
    _, groups, counts = np.unique(groups, return_inverse=True, return_counts=True)
    again = counts[groups] > 1
    return places[again], groups[again]


def sentences(text: str) -> int:
    """Sentences of `text`: ends before white space (of East Asian scripts, anywhere), and what is left."""
    text = text.strip()
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return len(ends) + (not ends or ends[-1] < len(text)) if text else 0
