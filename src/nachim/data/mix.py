"""Several corpora read as one: which of them each sequence is of, as a pure function of its global index."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nachim.data.hash import mix
from nachim.data.pack import Batches, Tokens
from nachim.data.prepare import Progress, prepare
from nachim.data.prepared import TOKENIZER
from nachim.spec.data import Data, Mixture, TokenizerFile
from nachim.spec.error import UserError

Index = npt.NDArray[np.int64]
# A share is a whole number of 2**-24: exact on every machine, up to 2**38 sequences.
PARTS = 24


@dataclasses.dataclass(frozen=True)
class Turns:
    """Who gives each sequence, by weights in force from given indices on.

    Of every two groups of ingredients the smaller's turns are spread evenly: after i sequences a group has i times its
    share, rounded. `seed` shifts where they begin.
    """

    begins: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]
    seed: int = 0

    def at(self, index: npt.ArrayLike) -> tuple[Index, Index]:
        """For each global index, the ingredient whose turn it is, and how many turns that had before."""
        index = np.asarray(index, dtype=np.int64)
        who, turn = np.empty_like(index), np.empty_like(index)
        ends = [*self.begins[1:], np.iinfo(np.int64).max]
        before = np.zeros(len(self.weights[0]), dtype=np.int64)
        for phase, (begin, end) in enumerate(zip(self.begins, ends, strict=True)):
            here = (index >= begin) & (index < end)
            if here.any():
                who[here], turn[here] = self._dealt(phase, index[here] - begin)
                turn[here] += before[who[here]]
            if index.max(initial=-1) < end:
                break
            before += self._counts(phase, end - begin)
        return who, turn

    def counts(self, length: int) -> Index:
        """Turns of each ingredient among the first `length` sequences."""
        found = np.zeros(len(self.weights[0]), dtype=np.int64)
        for phase, (begin, end) in enumerate(zip(self.begins, [*self.begins[1:], length], strict=True)):
            found += self._counts(phase, max(0, min(end, length) - begin))
        return found

    def _dealt(self, phase: int, index: Index) -> tuple[Index, Index]:
        """`at` within one stretch of equal weights: each ingredient in turn is set against those before it."""
        who, left, open_ = np.zeros_like(index), index.copy(), np.ones(len(index), dtype=bool)
        for one, (share, shift) in reversed(list(enumerate(self._shares(phase)))):
            given = _given(left, share, shift)
            mine = open_ & (_given(left + 1, share, shift) > given)
            who[mine] = one
            left = np.where(mine, given, np.where(open_, left - given, left))
            open_ &= ~mine
        return who, left

    def _counts(self, phase: int, length: int) -> Index:
        shares, left = self._shares(phase), length
        found = np.zeros(len(shares), dtype=np.int64)
        for one in reversed(range(len(shares))):
            found[one] = _given(np.array(left), *shares[one])
            left -= found[one]
        return found

    def _shares(self, phase: int) -> list[tuple[int, int]]:
        """Of each ingredient, its share of it and those before it together, and where in a turn it begins."""
        sums, found = np.cumsum(self.weights[phase]), []
        for one, (weight, total) in enumerate(zip(self.weights[phase], sums, strict=True)):
            share = round(weight / total * 2**PARTS) if total else 0
            key = np.array([((self.seed << 16) + (phase << 8) + one) % 2**64], dtype=np.uint64)
            found.append((share, int(mix(key)[0]) % 2**PARTS))
        whole = next(one for one, weight in enumerate(self.weights[phase]) if weight)
        found[whole] = (2**PARTS, 0)
        return found


def _given(index: Index, share: int, shift: int) -> Index:
    """Turns among the first `index` of a group that has `share` in 2**PARTS of them, `shift` of a turn ahead."""
    return (index * share + shift) >> PARTS


class Mixed:
    """Sequences of several corpora in turn: to a run what `Batches` are of one.

    `sources` are the corpora by name, in the mixture's order. A corpus is read in its own order, so that its turns in a
    run come epoch by epoch, and with no other beside it they are what it gives alone.
    """

    def __init__(self, sources: Mapping[str, Batches], mixture: Mixture, data: Data) -> None:
        self.sources, self.seq_len = dict(sources), data.seq_len
        self.most_epochs = mixture.most_epochs
        begins = [-(-one.at_tokens // data.seq_len) for one in mixture.changes]
        sizes = {name: source.prepared.unique_tokens for name, source in self.sources.items()}
        self.turns = Turns((0, *begins), stages(mixture, sizes), data.seed)

    @property
    def tokenizer(self) -> Path:
        """The file of the tokenizer that all are written in."""
        return next(iter(self.sources.values())).prepared.folder / TOKENIZER

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tokens of all corpora, in their order."""
        fingerprints = [source.prepared.fingerprint for source in self.sources.values()]
        return hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()

    @property
    def end(self) -> int:
        """The end-of-text token, which every document ends in."""
        return next(iter(self.sources.values())).end

    @property
    def last_shares(self) -> dict[str, float]:
        """The share of each corpus where the run ends."""
        weights = self.turns.weights[-1]
        return {name: weight / sum(weights) for name, weight in zip(self.sources, weights, strict=True)}

    def batch(self, first_index: int, count: int) -> Tokens:
        """The `count` train sequences from global index `first_index` on: [count, seq_len + 1]."""
        who, turn = self.turns.at(np.arange(first_index, first_index + count))
        found = np.empty((count, self.seq_len + 1), dtype=np.int64)
        for one, source in enumerate(self.sources.values()):
            if (mine := who == one).any():
                found[mine] = source.at(turn[mine])
        return found

    def seen(self, tokens: int) -> dict[str, dict[str, Any]]:
        """What a run of `tokens` reads of each corpus: its tokens, about how many bytes, and how many times over.

        Raises UserError where that is more often than the mixture allows.
        """
        counts = self.turns.counts(tokens // self.seq_len)
        for (name, source), count in zip(self.sources.items(), counts, strict=True):
            self._insist(name, int(count) * self.seq_len, source)
        return {
            name: {
                "fingerprint": source.prepared.fingerprint,
                "unique_tokens": source.prepared.unique_tokens,
                "tokens": int(count) * self.seq_len,
                "bytes": round(int(count) * self.seq_len * source.prepared.train_bytes / source.prepared.unique_tokens),
                "epochs": float(count) / source.sequences_per_epoch,
            }
            for (name, source), count in zip(self.sources.items(), counts, strict=True)
        }

    def _insist(self, name: str, tokens: int, source: Batches) -> None:
        whole = source.sequences_per_epoch * self.seq_len
        slack = len(self.sources) * self.seq_len  # turns are whole sequences
        if self.most_epochs is not None and tokens - slack > self.most_epochs * whole:
            raise UserError(
                f"the run reads {tokens:,} tokens of {name!r}, {whole:,} long: {tokens / whole:.3g} times over, and "
                f"Mixture.most_epochs is {self.most_epochs:g}; give it less weight (`nachim mix weigh`), or allow more"
            )


def stages(mixture: Mixture, sizes: Mapping[str, int]) -> tuple[tuple[float, ...], ...]:
    """The weights of the ingredients, at first and from each change on; `sizes` are their train tokens by name."""
    first = [one.weight for one in mixture.ingredients]
    if mixture.temperature is not None:
        largest = max(sizes.values())
        first = [
            weight * (sizes[one.name] / largest) ** (1 / mixture.temperature)
            for weight, one in zip(first, mixture.ingredients, strict=True)
        ]
    return (tuple(first), *(one.weights for one in mixture.changes))


def open_mixture(data: Data, cache: Path, progress: Progress | None = None) -> Mixed:
    """The corpora of `data`, a mixture, as tokens of one tokenizer, from `cache` or made now, like `prepare`.

    Raises UserError as `prepare` does, and when the tokens are not those that `data` insists on.
    """
    mixture, sources, plain = data.corpus, dict[str, Batches](), dataclasses.replace(data, fingerprint_of_tokens="")
    assert isinstance(mixture, Mixture)
    for one in mixture.ingredients:
        plain = dataclasses.replace(plain, corpus=one.corpus)
        prepared = prepare(plain, cache, progress)
        sources[one.name] = Batches(prepared, plain)
        if not isinstance(plain.tokenizer, TokenizerFile):
            file = TokenizerFile(path=str(prepared.folder / TOKENIZER), vocab_size=data.tokenizer.vocab_size)
            plain = dataclasses.replace(plain, tokenizer=file)
    found = Mixed(sources, mixture, data)
    if (wanted := data.fingerprint_of_tokens) not in ("", found.fingerprint):
        raise UserError(f"the run was made with the tokens {wanted}, and its mixture has {found.fingerprint}")
    return found
