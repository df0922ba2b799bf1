"""Rules that a text keeps or breaks: each gives a score, and a least and a most that the score may have.

Three families, each rule with its source: C4 (arXiv 1910.10683 section 2.2), Gopher (arXiv 2112.11446 appendix A1.1)
and FineWeb (arXiv 2406.17557 section 3.4). Scores are kept apart from thresholds, so that a threshold can be chosen
from the histogram of a corpus's own scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nachim.data.passage import TERMINAL, Passage, sentences
from nachim.spec.part import Part

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
ELLIPSES = ("...", "…")


@dataclass(frozen=True, kw_only=True)
class Rule(Part):
    """Base of every rule: a text is kept when `least` <= score <= `most`; None sets no limit."""

    SOURCE: ClassVar[str] = ""

    least: float | None = None
    most: float | None = None

    def check(self) -> None:
        if self.least is not None and self.most is not None and self.least > self.most:
            self.refuse("least", f"is {self.least}, above most, {self.most}: nothing would be kept")

    @property
    def name(self) -> str:
        """What scores and reasons are called: the class's name in lower case, with its `n` where it has one."""
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()
        n = getattr(self, "n", None)
        return words if n is None else f"{words}_{n}"

    def score(self, passage: Passage) -> float:
        """The score of a text; 0 where it has nothing to score."""
        raise NotImplementedError

    def keeps(self, score: float) -> bool:
        """Whether a text of this score is kept."""
        return (self.least is None or score >= self.least) and (self.most is None or score <= self.most)


def broken(rules: Sequence[Rule], scores: dict[str, float]) -> list[str]:
    """Names of the rules that these scores break, in the order of `rules`."""
    return [rule.name for rule in rules if not rule.keeps(scores[rule.name])]


def scores_of(rules: Sequence[Rule], text: str) -> dict[str, float]:
    """The score of a text under each rule, by the rule's name."""
    passage = Passage(text)
    return {rule.name: float(rule.score(passage)) for rule in rules}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _again(pieces: Iterable[str]) -> tuple[int, int]:
    """How many pieces stood before, and their characters."""
    seen, count, characters = set[str](), 0, 0
    for piece in pieces:
        if piece in seen:
            count += 1
            characters += len(piece)
        seen.add(piece)
    return count, characters


class _C4(Rule):
    """Base of the rules of C4."""

    SOURCE: ClassVar[str] = "arXiv 1910.10683 section 2.2"


class _Gopher(Rule):
    """Base of the rules of Gopher."""

    SOURCE: ClassVar[str] = "arXiv 2112.11446 appendix A1.1"


class _FineWeb(Rule):
    """Base of the rules of FineWeb."""

    SOURCE: ClassVar[str] = "arXiv 2406.17557 section 3.4"


_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = re.compile(r"terms of use|privacy policy|cookie policy|uses? cookies|use of cookies")
LINE_ENDS = (".", "?", "!", '"', "'")
LONGEST_WORD = 1000


def c4_lines(text: str, words: int = 3) -> tuple[list[str], dict[str, int]]:
    """The lines of a text that C4 keeps, citation marks removed; and how many went, by reason.

    A line ends in a full stop, a question or exclamation mark or a quotation mark, has at least `words` words, none
    longer than 1,000 characters, and speaks neither of JavaScript nor of cookies and terms of use.
    """
    kept, dropped = list[str](), dict[str, int]()
    for raw in text.splitlines():
        line = _CITATION.sub("", raw.strip())
        lower, parts = line.lower(), raw.split()
        if any(len(word) > LONGEST_WORD for word in parts):
            reason = "long word"
        elif not line.endswith(LINE_ENDS) or line.endswith("..."):
            reason = "no terminal mark"
        elif len(parts) < words:
            reason = "few words"
        elif "javascript" in lower:
            reason = "javascript"
        elif _POLICY.search(lower):
            reason = "policy"
        else:
            kept.append(line)
            continue
        dropped[reason] = dropped.get(reason, 0) + 1
    return kept, dropped


@dataclass(frozen=True, kw_only=True)
class C4Sentences(_C4):
    """Sentences in the lines that C4 keeps. Published code keeps 5 or more, of lines of 3 words."""

    least: float | None = 5.0
    words: int = 3

    def score(self, passage: Passage) -> float:
        return sum(map(sentences, c4_lines(passage.text, self.words)[0]))


@dataclass(frozen=True, kw_only=True)
class C4Brackets(_C4):
    """Curly brackets: one is enough to be taken for code."""

    most: float | None = 0.0

    def score(self, passage: Passage) -> float:
        return passage.text.count("{")


@dataclass(frozen=True, kw_only=True)
class C4LoremIpsum(_C4):
    """How often "lorem ipsum" is said."""

    most: float | None = 0.0

    def score(self, passage: Passage) -> float:
        return passage.text.lower().count("lorem ipsum")


@dataclass(frozen=True, kw_only=True)
class GopherWords(_Gopher):
    """Words with a letter or a digit."""

    least: float | None = 50.0
    most: float | None = 100_000.0

    def score(self, passage: Passage) -> float:
        return sum(passage.spoken.values())


@dataclass(frozen=True, kw_only=True)
class GopherWordLength(_Gopher):
    """Mean characters of those words."""

    least: float | None = 3.0
    most: float | None = 10.0

    def score(self, passage: Passage) -> float:
        return _share(sum(len(word) * count for word, count in passage.spoken.items()), sum(passage.spoken.values()))


@dataclass(frozen=True, kw_only=True)
class GopherHashes(_Gopher):
    """Hash signs a word."""

    most: float | None = 0.1

    def score(self, passage: Passage) -> float:
        return _share(passage.text.count("#"), len(passage.words))


@dataclass(frozen=True, kw_only=True)
class GopherEllipses(_Gopher):
    """Ellipses a word."""

    most: float | None = 0.1

    def score(self, passage: Passage) -> float:
        return _share(sum(map(passage.text.count, ELLIPSES)), len(passage.words))


@dataclass(frozen=True, kw_only=True)
class GopherBullets(_Gopher):
    """Share of lines that begin with a bullet."""

    most: float | None = 0.9

    def score(self, passage: Passage) -> float:
        return _share(sum(line.lstrip().startswith(("•", "-")) for line in passage.lines), len(passage.lines))


@dataclass(frozen=True, kw_only=True)
class GopherLineEllipses(_Gopher):
    """Share of lines that end in an ellipsis."""

    most: float | None = 0.3

    def score(self, passage: Passage) -> float:
        return _share(sum(line.rstrip().endswith(ELLIPSES) for line in passage.lines), len(passage.lines))


@dataclass(frozen=True, kw_only=True)
class GopherLetters(_Gopher):
    """Share of words with a letter."""

    least: float | None = 0.8

    def score(self, passage: Passage) -> float:
        lettered = sum(count for word, count in passage.spoken.items() if any(map(str.isalpha, word)))
        return _share(lettered, len(passage.words))


@dataclass(frozen=True, kw_only=True)
class GopherStopWords(_Gopher):
    """How many of eight common English words are used: the, be, to, of, and, that, have, with."""

    least: float | None = 2.0

    def score(self, passage: Passage) -> float:
        return len(STOP_WORDS & passage.counts.keys())


@dataclass(frozen=True, kw_only=True)
class GopherLines(_Gopher):
    """Share of lines that stood before."""

    most: float | None = 0.30

    def score(self, passage: Passage) -> float:
        return _share(_again(passage.blocks)[0], len(passage.blocks))


@dataclass(frozen=True, kw_only=True)
class GopherParagraphs(_Gopher):
    """Share of paragraphs that stood before."""

    most: float | None = 0.30

    def score(self, passage: Passage) -> float:
        return _share(_again(passage.paragraphs)[0], len(passage.paragraphs))


@dataclass(frozen=True, kw_only=True)
class GopherLineCharacters(_Gopher):
    """Share of characters in lines that stood before."""

    most: float | None = 0.20

    def score(self, passage: Passage) -> float:
        return _share(_again(passage.blocks)[1], len(passage.text))


@dataclass(frozen=True, kw_only=True)
class GopherParagraphCharacters(_Gopher):
    """Share of characters in paragraphs that stood before."""

    most: float | None = 0.20

    def score(self, passage: Passage) -> float:
        return _share(_again(passage.paragraphs)[1], len(passage.text))


@dataclass(frozen=True, kw_only=True)
class GopherTop(_Gopher):
    """Share of characters in the most frequent run of `n` words, of several the first."""

    n: int

    def check(self) -> None:
        self.require_positive("n")
        super().check()

    def score(self, passage: Passage) -> float:
        if len(passage.words) < self.n:
            return 0.0
        places, groups = passage.repeated(self.n)
        first, count = 0, 1
        if len(places):
            _, starts, counts = np.unique(groups, return_index=True, return_counts=True)
            count = int(counts.max())
            first = int(places[starts[counts == count].min()])
        length = int(passage.ends[first + self.n] - passage.ends[first]) + self.n - 1
        return _share(length * count, len(passage.text))


@dataclass(frozen=True, kw_only=True)
class GopherRuns(_Gopher):
    """Share of characters in runs of `n` words that stood before, none counted twice."""

    n: int

    def check(self) -> None:
        self.require_positive("n")
        super().check()

    def score(self, passage: Passage) -> float:
        places, groups = passage.repeated(self.n)
        seen, characters, free = set[int](), 0, 0
        ends = passage.ends
        for place, group in zip(places.tolist(), groups.tolist(), strict=True):
            if place < free:
                continue
            if group in seen:
                characters += int(ends[place + self.n] - ends[place])
                free = place + self.n
            seen.add(group)
        return _share(characters, len(passage.text))


@dataclass(frozen=True, kw_only=True)
class FineWebLineEnds(_FineWeb):
    """Share of lines that end in a mark that ends sentences."""

    least: float | None = 0.12
    marks: str = TERMINAL

    def score(self, passage: Passage) -> float:
        return _share(sum(line.endswith(tuple(self.marks)) for line in passage.written), len(passage.written))


@dataclass(frozen=True, kw_only=True)
class FineWebShortLines(_FineWeb):
    """Share of lines of at most `length` characters."""

    most: float | None = 0.67
    length: int = 30

    def score(self, passage: Passage) -> float:
        return _share(sum(len(line) <= self.length for line in passage.written), len(passage.written))


@dataclass(frozen=True, kw_only=True)
class FineWebLineCharacters(_FineWeb):
    """Share of characters in lines that stood before: the paper's 0.1; the default of its published code is 0.01."""

    most: float | None = 0.1

    def score(self, passage: Passage) -> float:
        return _share(_again(passage.written)[1], len(passage.text) - passage.text.count("\n"))


@dataclass(frozen=True, kw_only=True)
class FineWebNewlines(_FineWeb):
    """Newlines a word: text that is a list. Of FineWeb's published code, not of its paper."""

    most: float | None = 0.3

    def score(self, passage: Passage) -> float:
        return _share(passage.text.count("\n"), len(passage.words))


C4: tuple[Rule, ...] = (C4Sentences(), C4Brackets(), C4LoremIpsum())
GOPHER_QUALITY: tuple[Rule, ...] = (
    *(GopherWords(), GopherWordLength(), GopherHashes(), GopherEllipses(), GopherBullets(), GopherLineEllipses()),
    *(GopherLetters(), GopherStopWords()),
)
GOPHER_REPETITION: tuple[Rule, ...] = (
    *(GopherLines(), GopherParagraphs(), GopherLineCharacters(), GopherParagraphCharacters()),
    *(GopherTop(n=n, most=most) for n, most in ((2, 0.20), (3, 0.18), (4, 0.16))),
    *(GopherRuns(n=n, most=most) for n, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))),
)
FINEWEB: tuple[Rule, ...] = (FineWebLineEnds(), FineWebShortLines(), FineWebLineCharacters(), FineWebNewlines())
FAMILIES: dict[str, tuple[Rule, ...]] = {
    "c4": C4,
    "gopher-quality": GOPHER_QUALITY,
    "gopher-repetition": GOPHER_REPETITION,
    "fineweb": FINEWEB,
}
