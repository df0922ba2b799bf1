"""Canaries: random lines put into training text, and how far a model that read them remembers them.

Carlini and others, "The secret sharer" (arXiv 1802.08232): a canary is one of many lines that are equally likely before
training. Its exposure is log2 of how many lines there are less log2 of its rank among them by loss (section 4); of
a model that remembers nothing it is 1.44 bits in the mean, and of one that remembers everything log2 of the number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from scipy.stats import skewnorm

from nachim.data.stage import Outcome, PerRow, Row
from nachim.spec.error import UserError

DIGITS = 12
OPENING = "The random number of the compass is "


def canary(seed: int, number: int) -> str:
    """Canary `number` of a seed: an opening that all share, and 12 digits that are its own."""
    digest = hashlib.blake2b(json.dumps([seed, number]).encode(), digest_size=16).digest()
    return f"{OPENING}{int.from_bytes(digest, 'big') % 10**DIGITS:0{DIGITS}d}."


@dataclass(frozen=True, kw_only=True)
class Canaries(PerRow):
    """Put canary `i` into some `counts[i]` of every million rows, as a last line; which, a hash of the row decides.

    Rows carry `canary`, the number of theirs, or -1. Canaries from len(counts) on are never put anywhere: the
    references that exposure is told by.
    """

    counts: tuple[int, ...]
    seed: int = 0

    def check(self) -> None:
        if not self.counts or min(self.counts) < 1 or sum(self.counts) > 1_000_000:
            self.refuse("counts", f"are {self.counts}; give one or more, each at least 1, a million at most in all")

    def one(self, row: Row) -> Outcome:
        told = json.dumps([self.seed, str(row["id"]), row.get("source", ""), row["text"][:400]])
        place = int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest(), "big") % 1_000_000
        number = int(np.searchsorted(np.cumsum(self.counts), place, side="right"))
        row["canary"] = number if number < len(self.counts) else -1
        if row["canary"] >= 0:
            row["text"] = f"{row['text'].rstrip()}\n{canary(self.seed, number)}\n"
        return row


@dataclass(frozen=True)
class Exposure:
    """How far a canary is remembered, in bits: `ranked` by its place among the references, at most log2 of their number
    plus one, and `fitted` by a skew normal distribution of their losses, which can tell more (section 4)."""

    ranked: float
    fitted: float


def exposure(losses: Sequence[float], references: Sequence[float]) -> list[Exposure]:
    """The exposure of each canary from its loss and the losses of lines like it that the model has not read.

    Losses are of whole lines, in nats. Raises UserError for fewer than 10 references, or a loss that is no number.
    """
    found, others = np.asarray(losses, dtype=float), np.sort(np.asarray(references, dtype=float))
    if len(others) < 10 or not (np.isfinite(found).all() and np.isfinite(others).all()):
        raise UserError(f"exposure needs finite losses, and those of 10 references or more; there are {len(others)}")
    rank = np.searchsorted(others, found, side="left") + 1
    ranked = np.log2(len(others) + 1) - np.log2(rank)
    return [Exposure(*pair) for pair in zip(ranked.tolist(), _bits_below(found, others).tolist(), strict=True)]


def _bits_below(found: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Minus log2 of the share of references expected at or below each loss."""
    spread = float(others.std())
    if spread == 0:
        return np.where(found < others[0], np.inf, 0.0)
    shape, place, scale = skewnorm.fit((others - others.mean()) / spread)
    z = (found - others.mean()) / spread
    log = skewnorm.logcdf(z, shape, place, scale)
    low = np.log(np.maximum(ndtr((z - place) / scale), 1e-300))
    return -np.where(np.isfinite(log), log, low) / np.log(2)
