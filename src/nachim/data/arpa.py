"""ARPA files: n-gram models as text, as KenLM, SRILM and others read and write them."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nachim.data.ngram import BEGIN, END, UNKNOWN, Level, NGram
from nachim.spec.disk import replacing
from nachim.spec.error import UserError

UNSEEN = -100.0
"""The log10 probability of an unknown word where a file has no `<unk>`, as KenLM has it."""
CHUNK = 1 << 16

Ids = npt.NDArray[np.int64]


def _silent(done: float) -> None:
    """Hears nothing."""


def write_arpa(model: NGram, path: Path, tick: Callable[[float], None] = _silent) -> None:
    """Write `model` to `path`, seven digits after the point. Raises UserError when the disk refuses."""
    total, done = sum(len(level.keys) for level in model.levels), 0
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(level.keys)}\n" for n, level in enumerate(model.levels, start=1))
        grams = np.empty((1, 0), dtype=np.int64)
        for n, level in enumerate(model.levels, start=1):
            place, last = np.divmod(level.keys, len(model.words))
            grams = np.column_stack((grams[place], last))
            file.write(f"\n\\{n}-grams:\n")
            for at in range(0, len(grams), CHUNK):
                file.writelines(_lines(model, n, grams[at : at + CHUNK], at))
                tick(min(1.0, (done + at + CHUNK) / total))
            done += len(grams)
        file.write("\n\\end\\\n")


def _lines(model: NGram, n: int, grams: Ids, at: int) -> Iterator[str]:
    words, level = model.words, model.levels[n - 1]
    chosen = slice(at, at + len(grams))
    for gram, log10, backoff in zip(grams.tolist(), level.log10[chosen], level.backoff[chosen], strict=True):
        text = " ".join([words[word] for word in gram])
        yield f"{log10:.7f}\t{text}\n" if n == model.order else f"{log10:.7f}\t{text}\t{backoff:.7f}\n"


def read_arpa(path: Path, tick: Callable[[float], None] = _silent) -> NGram:
    """The model in `path` (plain, .gz or .zst). `tick` hears the share read.

    Raises UserError, naming the line, for a file that is none: other counts than it states, a number that is none, an
    n-gram that stands twice, or whose words or beginning are not in the file.
    """
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            return _Reader(path, io.TextIOWrapper(io.BufferedReader(stream), "utf-8", newline="\n"), tick).model()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as an ARPA file: {error}") from error


class _Reader:
    """Goes through an ARPA file once."""

    def __init__(self, path: Path, file: io.TextIOWrapper, tick: Callable[[float], None]) -> None:
        self.path, self.file, self.tick, self.number = path, file, tick, 0

    def model(self) -> NGram:
        """The whole file."""
        counts = self._counts()
        rows = self._section(1, counts[0])
        words = [row[1] for row in rows]
        log10, backoff = self._numbers(rows, 1)
        if UNKNOWN not in words:
            words.append(UNKNOWN)
            log10, backoff = np.append(log10, UNSEEN), np.append(backoff, 0.0)
        for mark in (BEGIN, END):
            if mark not in words:
                self._refuse(f"has no {mark}")
        place = {word: i for i, word in enumerate(words)}
        if len(place) < len(words):
            self._refuse("has a word twice")
        levels = [Level(np.arange(len(words)), log10, backoff)]
        for n, count in enumerate(counts[1:], start=2):
            levels.append(self._level(self._section(n, count), n, place, levels))
        if self._next() != "\\end\\":
            self._refuse("lacks \\end\\ here")
        return NGram(tuple(words), tuple(levels))

    def _counts(self) -> list[int]:
        """How many n-grams the head states of each length."""
        while self._next() != "\\data\\":
            pass
        found, total = list[int](), re.compile(r"ngram +(\d+) *= *(\d+)")
        for line in self.file:
            self.number += 1
            if not line.strip():
                break
            stated = total.fullmatch(line.strip())
            if not stated or int(stated[1]) != len(found) + 1:
                self._refuse(f"does not say here how many {len(found) + 1}-grams there are")
            found.append(int(stated[2]))
        if not found or not found[0]:
            self._refuse("has no n-gram")
        self.total, self.read = sum(found), 0
        return found

    def _section(self, n: int, count: int) -> list[list[str]]:
        """The n-grams of one length, each its number, its words and, where it stands, its backoff."""
        if self._next() != f"\\{n}-grams:":
            self._refuse(f"lacks \\{n}-grams: here")
        rows = list[list[str]]()
        for line in itertools.islice(self.file, count):
            self.number += 1
            row = line.rstrip("\r\n").replace("\t", " ").split(" ")
            if len(row) not in (n + 1, n + 2):
                self._refuse(f"has no {n}-gram here, and states {count} of them")
            rows.append(row)
            if not self.number % CHUNK:
                self.tick((self.read + len(rows)) / self.total)
        if len(rows) < count:
            self._refuse(f"ends before its {count} {n}-grams do")
        self.read += count
        return rows

    def _numbers(self, rows: list[list[str]], n: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        try:
            log10 = np.array([float(row[0]) for row in rows])
            backoff = np.array([float(row[n + 1]) if len(row) > n + 1 else 0.0 for row in rows])
        except ValueError as error:
            self._refuse(f"has something that is no number among the {n}-grams before this ({error})")
        if not (np.isfinite(log10).all() and (log10 <= 0).all() and np.isfinite(backoff).all()):
            self._refuse(f"has a log10 probability above 0, or a number that is none, among the {n}-grams before this")
        return log10, backoff

    def _level(self, rows: list[list[str]], n: int, place: dict[str, int], below: list[Level]) -> Level:
        log10, backoff = self._numbers(rows, n)
        ids = np.array([[place.get(word, -1) for word in row[1 : n + 1]] for row in rows], np.int64).reshape(-1, n)
        context = ids[:, 0]
        for k in range(2, n):
            context = below[k - 1].find(context * len(place) + ids[:, k - 1])
            context = np.where((ids[:, :k] >= 0).all(axis=1), context, -1)
        lost = np.flatnonzero((context < 0) | (ids < 0).any(axis=1))
        if len(lost):
            gram = " ".join(rows[lost[0]][1 : n + 1])
            self._refuse(f"has the {n}-gram {gram!r} before this, and lacks its words or what it begins with")
        keys = context * len(place) + ids[:, -1]
        order = np.argsort(keys, kind="stable")
        if (np.diff(keys[order]) == 0).any():
            self._refuse(f"has one {n}-gram twice before this")
        return Level(keys[order], log10[order], backoff[order])

    def _next(self) -> str:
        """The next line that is not blank."""
        for line in self.file:
            self.number += 1
            if line.strip():
                return line.strip()
        return self._refuse("is no ARPA file, or ends too early")

    def _refuse(self, why: str) -> NoReturn:
        raise UserError(f"{self.path}, line {self.number}: the file {why}")
