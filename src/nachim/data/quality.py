"""Stages that score rows, mask what they must not tell, and drop those whose scores are out of bounds.

A score out of bounds drops a row under the score's name, and the row carries it all the same: without bounds a stage
only writes scores, and bounds are chosen from their histogram.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nachim.data.arpa import read_arpa
from nachim.data.classify import Classifier
from nachim.data.ngram import NGram, perplexities
from nachim.data.pii import KINDS, mask
from nachim.data.rules import FAMILIES, Rule, broken, c4_lines, scores_of
from nachim.data.stage import Drop, Outcome, PerRow, Row
from nachim.spec.error import UserError, nearest

ALL_RULES: tuple[Rule, ...] = tuple(rule for rules in FAMILIES.values() for rule in rules)


@dataclass(frozen=True, kw_only=True)
class Rules(PerRow):
    """Score rows by rules, under the rules' names; with `drop`, rows that break one go, under the first one's name."""

    rules: tuple[Rule, ...] = ALL_RULES
    drop: bool = True

    def check(self) -> None:
        names = [rule.name for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                self.refuse("rules", f"has {name} {names.count(name)} times, and a row one score of that name")

    def one(self, row: Row) -> Outcome:
        scores = scores_of(self.rules, row["text"])
        row.update(scores)
        reasons = broken(self.rules, scores)
        if not reasons or not self.drop:
            return row
        return Drop(reasons[0], ", ".join(f"{name} {scores[name]:.4g}" for name in reasons), row)


@dataclass(frozen=True, kw_only=True)
class C4Lines(PerRow):
    """Leave of each row the lines that C4 keeps (arXiv 1910.10683 section 2.2); a row without one goes."""

    words: int = 3

    def one(self, row: Row) -> Outcome:
        kept, dropped = c4_lines(row["text"], self.words)
        if not kept:
            return Drop("no line kept", ", ".join(f"{reason} {count}" for reason, count in dropped.items()))
        row["text"] = "\n".join(kept)
        row["c4_lines_dropped"] = sum(dropped.values())
        return row


@dataclass(frozen=True, kw_only=True)
class Bounded(PerRow):
    """Base of stages that write one score; a row goes whose score is below `least` or above `most`."""

    least: float | None = None
    most: float | None = None

    def check(self) -> None:
        if self.least is not None and self.most is not None and self.least > self.most:
            self.refuse("least", f"is {self.least}, above most, {self.most}: nothing would be kept")

    def judged(self, row: Row, name: str, score: float) -> Outcome:
        """`row` with its score, kept or dropped."""
        row[name] = score
        if self.least is not None and score < self.least:
            return Drop(f"{name} too low", f"{score:.4g}", row)
        if self.most is not None and score > self.most:
            return Drop(f"{name} too high", f"{score:.4g}", row)
        return row


@dataclass(frozen=True, kw_only=True)
class Perplexity(Bounded):
    """Write each row's `perplexity` a word under the n-gram model in the ARPA file `model`, and cut both tails.

    Text that is too easy repeats itself or is boilerplate, and text that is too hard is no text of the model's kind.
    """

    model: str

    def files(self) -> tuple[Path, ...]:
        return (Path(self.model).expanduser(),)

    def many(self, rows: Sequence[Row]) -> list[Outcome]:
        found = perplexities(_ngram(self), [row["text"] for row in rows])
        return [
            Drop("no word") if math.isnan(score) else self.judged(row, "perplexity", score)
            for row, score in zip(rows, found.tolist(), strict=True)
        ]


@functools.cache
def _ngram(stage: Perplexity) -> NGram:
    return read_arpa(stage.files()[0])


@dataclass(frozen=True, kw_only=True)
class Classified(Bounded):
    """Write under `name` the probability of `label` that the classifier in the file `model` gives each row."""

    model: str
    label: str
    name: str = "quality"

    def files(self) -> tuple[Path, ...]:
        return (Path(self.model).expanduser(),)

    def many(self, rows: Sequence[Row]) -> list[Outcome]:
        model = _classifier(self.files()[0])
        if self.label not in model.labels:
            self.refuse(
                "label", f"is {self.label!r}, which {self.model} does not tell{nearest(self.label, model.labels)}"
            )
        found = model.probabilities([row["text"].encode("utf-8", "replace") for row in rows])
        scores = found[:, model.labels.index(self.label)].tolist()
        return [self.judged(row, self.name, score) for row, score in zip(rows, scores, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Language(PerRow):
    """Write each row's `language`, by the classifier in the file `model`, and `language_share`, its probability.

    Of `keep`, where it names any, rows in other languages go, and rows whose language has less than `least`.
    """

    model: str
    keep: tuple[str, ...] = ()
    least: float = 0.0

    def files(self) -> tuple[Path, ...]:
        return (Path(self.model).expanduser(),)

    def many(self, rows: Sequence[Row]) -> list[Outcome]:
        model = _classifier(self.files()[0])
        for language in self.keep:
            if language not in model.labels:
                self.refuse(
                    "keep", f"has {language!r}, which {self.model} does not tell{nearest(language, model.labels)}"
                )
        found = model.probabilities([row["text"].encode("utf-8", "replace") for row in rows])
        return [
            self._judged(row, model.labels[of.argmax()], float(of.max())) for row, of in zip(rows, found, strict=True)
        ]

    def _judged(self, row: Row, language: str, share: float) -> Outcome:
        row.update(language=language, language_share=share)
        if self.keep and language not in self.keep:
            return Drop("other language", language, row)
        return Drop("language uncertain", f"{language} {share:.3f}", row) if share < self.least else row


@functools.cache
def _classifier(path: Path) -> Classifier:
    return Classifier.load(path)


@dataclass(frozen=True, kw_only=True)
class MaskPII(PerRow):
    """Mask e-mail and public IP addresses, telephone numbers, IBANs, cards and keys, and count each, as `pii_email`."""

    def one(self, row: Row) -> Outcome:
        row["text"], counts = mask(row["text"])
        for name in dict.fromkeys(kind.name for kind in KINDS):
            row[f"pii_{name}"] = counts[name]
        return row


def rules_of(names: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of families, by their names. Raises UserError for a family that is none."""
    for name in names:
        if name not in FAMILIES:
            raise UserError(f"no family of rules is called {name!r}{nearest(name, FAMILIES)}")
    return tuple(rule for name in names for rule in FAMILIES[name])
