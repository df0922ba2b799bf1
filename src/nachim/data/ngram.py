"""n-gram language models: interpolated modified Kneser-Ney, trained and read in numpy.

Chen and Goodman (1998), "An empirical study of smoothing techniques", section 5; counts of sentence beginnings and the
share of unknown words as Heafield and others (2013), "Scalable modified Kneser-Ney language model estimation", have it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.data.passage import WORD
from nachim.spec.error import UserError

UNKNOWN, BEGIN, END = SPECIAL = "<unk>", "<s>", "</s>"
NEVER = -99.0
"""The log10 probability written for `<s>`, which nothing predicts."""
FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where counts of counts allow no estimate, as lmplz's --discount_fallback has them."""
MOST_ORDER = 10

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Level:
    """All n-grams of one length, sorted by `keys`: place of the first n-1 words in the level below, times words, plus
    the last word. `log10` is of the probability, `backoff` of what a longer context that is not known costs."""

    keys: Ids
    log10: Floats
    backoff: Floats

    def find(self, keys: Ids) -> Ids:
        """The place of each key, or -1."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, place, -1)


@dataclass(frozen=True, eq=False)
class NGram:
    """A model of `words`, which include `<unk>`, `<s>` and `</s>`, with the n-grams of each length from 1 on."""

    words: tuple[str, ...]
    levels: tuple[Level, ...]

    @property
    def order(self) -> int:
        """The greatest n."""
        return len(self.levels)

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The place of each word."""
        return {word: i for i, word in enumerate(self.words)}

    def score(self, sentences: Sequence[Sequence[str]]) -> tuple[Floats, Ids]:
        """Of each sentence the log10 probability, its end included, and how many words it has with its end."""
        ids, sentence = self._run(sentences)
        scored = np.append(False, sentence[1:] == sentence[:-1]) if len(ids) else np.zeros(0, dtype=bool)
        each = self._log10(ids, sentence)
        sums = np.bincount(sentence, weights=np.where(scored, each, 0.0), minlength=len(sentences))
        return sums, np.bincount(sentence[scored], minlength=len(sentences))

    def _run(self, sentences: Sequence[Sequence[str]]) -> tuple[Ids, Ids]:
        """All sentences with their marks in one array, and the sentence that each word is of."""
        known, unknown = self.ids.get, self.ids[UNKNOWN]
        begin, end = self.ids[BEGIN], self.ids[END]
        ids = [i for one in sentences for i in (begin, *[known(word, unknown) for word in one], end)]
        return np.array(ids, dtype=np.int64), np.repeat(np.arange(len(sentences)), [len(one) + 2 for one in sentences])

    def _log10(self, ids: Ids, sentence: Ids) -> Floats:
        """log10 of each word after those before it: of the longest known n-gram, and what backing off to it cost.

        `place` holds where the n-gram that begins at each word stands in its level.
        """
        total, place = self.levels[0].log10[ids], ids
        for n, level in enumerate(self.levels[1:], start=2):
            if len(ids) < n:
                break
            context = place[: len(ids) - n + 1]
            whole = (context >= 0) & (sentence[: len(context)] == sentence[n - 1 :])
            place = np.full(len(context), -1)
            place[whole] = level.find(context[whole] * len(self.words) + ids[n - 1 :][whole])
            found, missed = np.flatnonzero(place >= 0), np.flatnonzero(whole & (place < 0))
            total[found + n - 1] = level.log10[place[found]]
            total[missed + n - 1] += self.levels[n - 2].backoff[context[missed]]
        return total


def train(sentences: Iterable[Sequence[str]], order: int, tick: Callable[[float], None] = lambda done: None) -> NGram:
    """An interpolated modified Kneser-Ney model of n-grams up to `order` words, of sentences that are words in turn.

    It takes some 100 bytes a word of text, and as much again for every different n-gram. Raises UserError for an order
    that is none, for text without words, and for text that has `<s>`, `</s>` or `<unk>` as a word.
    """
    if not 1 <= order <= MOST_ORDER:
        raise UserError(f"n-grams of {order} words cannot be trained: give 1 to {MOST_ORDER}")
    words, ids, sentence = _read(sentences)
    counted = _count(ids, sentence, len(words), order, lambda done: tick(done / 2))
    levels = list[Level]()
    for n, counts in enumerate(counted, start=1):
        above = counted[n] if n < order else None
        levels.append(_level(counts, _adjusted(counts, above, n), levels, len(words)))
        tick(0.5 + n / order / 2)
    return NGram(words, tuple(levels))


def _read(sentences: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], Ids, Ids]:
    """The vocabulary, all words as their places in it, and the sentence of each."""
    place = {word: i for i, word in enumerate(SPECIAL)}
    ids, sizes = list[int](), list[int]()
    begin, end = place[BEGIN], place[END]
    for sentence in sentences:
        ids.append(begin)
        ids += [place.setdefault(word, len(place)) for word in sentence]
        ids.append(end)
        sizes.append(len(sentence) + 2)
    run, size = np.array(ids, dtype=np.int64), np.array(sizes, dtype=np.int64)
    if len(run) == 2 * len(size):
        raise UserError("there is not one word to train an n-gram model on")
    if (np.bincount(run, minlength=3)[:3] != [0, len(size), len(size)]).any():
        raise UserError(f"the text has {', '.join(SPECIAL)} as a word, which are marks: take them out, or split them")
    return tuple(place), run, np.repeat(np.arange(len(size)), size)


@dataclass(frozen=True, eq=False)
class _Counts:
    """n-grams of one length: key, how often they stand, the place of their last n-1 words, whether they begin one."""

    keys: Ids
    counts: Ids
    suffix: Ids
    begins: npt.NDArray[np.bool_]


def _count(ids: Ids, sentence: Ids, words: int, order: int, tick: Callable[[float], None]) -> list[_Counts]:
    place, begin = ids, SPECIAL.index(BEGIN)
    counts = np.bincount(ids, minlength=words)
    found = [_Counts(np.arange(words), counts, np.zeros(words, np.int64), np.arange(words) == begin)]
    for n in range(2, order + 1):
        at = np.flatnonzero((place >= 0)[: len(ids) - n + 1] & (sentence[: len(ids) - n + 1] == sentence[n - 1 :]))
        keys, first, which, counts = np.unique(
            place[at] * words + ids[at + n - 1], return_index=True, return_inverse=True, return_counts=True
        )
        found.append(_Counts(keys, counts, place[at[first] + 1], ids[at[first]] == begin))
        place = np.full(len(ids), -1)
        place[at] = which
        tick((n - 1) / max(1, order - 1))
    return found


def _adjusted(counts: _Counts, above: _Counts | None, n: int) -> Ids:
    """How many different words stand before each n-gram; of the longest, and where a sentence begins, how often."""
    if above is None:
        held = counts.counts.copy()
    else:
        held = np.where(counts.begins, counts.counts, np.bincount(above.suffix, minlength=len(counts.keys)))
    if n == 1:
        held[SPECIAL.index(BEGIN)] = 0
    return held


def discounts(counts: Ids) -> tuple[float, float, float]:
    """What is taken from counts of 1, of 2, and of 3 or more (Chen and Goodman, equation 26), or `FALLBACK`."""
    t = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    if not t[1:5].all():
        return FALLBACK
    y = t[1] / (t[1] + 2 * t[2])
    found = tuple(k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))
    return found if all(0 <= one <= k for k, one in enumerate(found, start=1)) else FALLBACK


def _level(counts: _Counts, held: Ids, below: list[Level], words: int) -> Level:
    """Probabilities of n-grams of one length; the weight that is left is written into the level below as backoff."""
    taken = np.array([0.0, *discounts(held)])[np.minimum(held, 3)]
    context = counts.keys // words if below else np.zeros(words, dtype=np.int64)
    size = len(below[-1].keys) if below else 1
    total = np.bincount(context, weights=held, minlength=size)
    left = np.bincount(context, weights=taken, minlength=size)
    share = np.divide(left, total, out=np.ones(size), where=total > 0)
    lower = 10 ** below[-1].log10[counts.suffix] if below else np.full(words, 1 / (words - 1))
    log10 = np.log10((held - taken) / total[context] + share[context] * lower)
    if below:
        below[-1].backoff[:] = np.log10(share)
    else:
        log10[SPECIAL.index(BEGIN)] = NEVER
    return Level(counts.keys, log10, np.zeros(len(log10)))


_DIGITS = str.maketrans("123456789", "0" * 9)


def sentences_of(text: str) -> list[list[str]]:
    """The lines of a text that have words, as words in lower case, every digit as 0."""
    lines = (WORD.findall(line) for line in text.lower().translate(_DIGITS).splitlines())
    return [line for line in lines if line]


def perplexities(model: NGram, texts: Sequence[str]) -> Floats:
    """The perplexity of each text a word, ends of lines counted as words; NaN for a text without words."""
    lines = [sentences_of(text) for text in texts]
    sums, counts = model.score([line for some in lines for line in some])
    owner = np.repeat(np.arange(len(texts)), [len(some) for some in lines])
    total = np.bincount(owner, weights=sums, minlength=len(texts))
    words = np.bincount(owner, weights=counts, minlength=len(texts))
    return 10 ** -np.divide(total, words, out=np.full(len(texts), np.nan), where=words > 0)
