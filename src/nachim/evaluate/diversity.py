"""How various a text is: distinct n-grams, entropy, and how much of it lies in the tail of another text.

Texts are documents of token ids; an n-gram never spans two documents. All of these depend on how long a text is, so
only texts of as many tokens can be compared: `first_tokens` cuts them to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Documents = Sequence[Sequence[int] | Ids]


def first_tokens(documents: Documents, count: int) -> list[Ids]:
    """The documents up to the token `count`, the last one cut there."""
    found, left = list[Ids](), count
    for document in documents:
        if left <= 0:
            break
        found.append(np.asarray(document[:left], dtype=np.int64))
        left -= len(found[-1])
    return found


def grams(documents: Documents, n: int) -> Ids:
    """Every n-gram of the documents, in order, one in a row: [n-grams, n]."""
    arrays = [np.asarray(document, dtype=np.int64) for document in documents]
    long = [np.lib.stride_tricks.sliding_window_view(array, n) for array in arrays if len(array) >= n]
    return np.concatenate(long) if long else np.empty((0, n), dtype=np.int64)


def numbered(rows: Ids) -> Ids:
    """A number for each row [rows, n], the same for the same row: columns are joined one by one, so none overflow."""
    place = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:
        _, known = np.unique(column, return_inverse=True)
        _, place = np.unique(place * (known.max(initial=0) + 1) + known, return_inverse=True)
    return place


def distinct(documents: Documents, n: int) -> float:
    """distinct-n: different n-grams over all n-grams (arXiv 1510.03055); NaN where no document has n tokens."""
    place = numbered(grams(documents, n))
    return float(len(np.unique(place)) / len(place)) if len(place) else float("nan")


def entropy(documents: Documents, n: int = 1) -> float:
    """Entropy of a token after the n-1 before it, nat, by counts: that of n-grams less that of their first n-1.

    Counts of few tokens come out too low (Miller 1955), and the more so the larger n is.
    """
    rows = grams(documents, n)
    return _entropy(rows) - (_entropy(rows[:, :-1]) if n > 1 else 0.0)


def _entropy(rows: Ids) -> float:
    counts = np.bincount(numbered(rows))
    share = counts / counts.sum() if len(counts) else np.ones(1)
    return float(-(share * np.log(share)).sum())


@dataclass(frozen=True, eq=False)
class Tail:
    """The rarest n-grams of a text that have `share` of it together, and those that it does not have at all.

    `rare` [n-grams, n] are its n-grams by rising count, as many as `share` takes; `known` [n-grams, n] are all.
    """

    n: int
    rare: Ids
    known: Ids

    @classmethod
    def of(cls, documents: Documents, n: int, share: float) -> Tail:
        """The tail of `documents`; of n-grams that are as rare, those that come first by their ids."""
        known, counts = np.unique(grams(documents, n), axis=0, return_counts=True)
        order = np.argsort(counts, kind="stable")
        taken = int(np.searchsorted(np.cumsum(counts[order]), share * counts.sum(), side="right"))
        return cls(n, known[order[:taken]], known)

    def mass(self, documents: Documents) -> float:
        """The share of the n-grams of `documents` that are rare ones of the text."""
        return self._share(documents, self.rare)

    def unseen(self, documents: Documents) -> float:
        """The share of the n-grams of `documents` that the text has not."""
        return 1 - self._share(documents, self.known)

    def _share(self, documents: Documents, among: Ids) -> float:
        rows = grams(documents, self.n)
        place = numbered(np.concatenate((among, rows)))
        return float(np.isin(place[len(among) :], place[: len(among)]).mean()) if len(rows) else float("nan")
