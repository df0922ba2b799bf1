"""Tokens to sequences: train batches by global index, and fixed windows of the validation split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from nachim.data.fit import Packed, pack
from nachim.data.order import position
from nachim.data.prepared import TOKENIZER, Prepared
from nachim.spec.data import Data
from nachim.spec.error import UserError

Tokens = npt.NDArray[np.int64]


class Batches:
    """Sequences of `data.seq_len` tokens and the next one: ``x[:, :-1]`` is read, ``x[:, 1:]`` is predicted.

    The loader's whole state is the index of the next sequence. Packed as a stream, a document may start in the middle
    of a sequence and go on in another. Packed by best fit, a sequence is an end-of-text token and whole documents, and
    what is left over is filled with end-of-text tokens: an empty document, which no text is (`nachim.data.fit`).
    Raises UserError when a split is shorter than one sequence.
    """

    def __init__(self, prepared: Prepared, data: Data) -> None:
        self.prepared, self.seq_len, self._seed = prepared, data.seq_len, data.seed
        self.packed: Packed | None = None
        self.sequences_per_epoch = _sequences("train", prepared.train, data.seq_len)
        if data.packing == "best-fit":
            self.packed = pack(prepared.train_documents, len(prepared.train), data.seq_len)
            self.sequences_per_epoch = len(self.packed.bins) - 1
        self.validation_windows = _sequences("validation", prepared.validation, data.seq_len)

    @property
    def end(self) -> int:
        """The end-of-text token, which every document ends in."""
        return int(self.prepared.train[-1])

    def packing(self) -> dict[str, int]:
        """What an epoch of the train split is: sequences, documents and how many are cut, filling, tokens left out.

        In a stream a document counts as cut where a sequence ends within it.
        """
        starts, total, length = self.prepared.train_documents, len(self.prepared.train), self.seq_len
        whole = self.sequences_per_epoch * length
        if self.packed is not None:
            cut, padding, unread = self.packed.cut, whole - total, 0
        else:
            ends = np.append(starts[1:], total)
            first, last = (np.maximum(token - 1, 0) // length for token in (starts, ends - 1))  # who predicts it
            cut, padding, unread = int((first != last).sum()), 0, total - 1 - whole
        told = {"sequences": self.sequences_per_epoch, "documents": len(starts), "documents_cut": cut}
        return {**told, "padding_tokens": padding, "tokens_left_out": unread}

    @property
    def tokenizer(self) -> Path:
        """The file of the tokenizer."""
        return self.prepared.folder / TOKENIZER

    def batch(self, first_index: int, count: int) -> Tokens:
        """The `count` train sequences from global index `first_index` on: [count, seq_len + 1]."""
        return self.at(np.arange(first_index, first_index + count))

    def at(self, index: Tokens) -> Tokens:
        """The train sequences at each global index [count]: [count, seq_len + 1]."""
        sequence = position(self._seed, index, self.sequences_per_epoch)
        if self.packed is None:
            return self._windows(self.prepared.train, sequence)
        return self._bins(self.packed, sequence)

    def validation(self, n_tokens: int) -> Tokens:
        """Evenly spaced validation windows that predict `n_tokens` tokens: [windows, seq_len + 1].

        Always the same. Rounded down to whole windows, at least one and at most all `validation_windows`.
        """
        count = min(max(1, n_tokens // self.seq_len), self.validation_windows)
        return self._windows(self.prepared.validation, np.arange(count) * self.validation_windows // count)

    def target_bytes(self, x: Tokens) -> int:
        """Raw bytes of the tokens that `x` [B, seq_len + 1] predicts: bpb is nats / ln 2 / these bytes.

        An end-of-text token counts nats and no bytes.
        """
        return int(self.prepared.bytes_per_token[x[:, 1:]].sum())

    def _bins(self, packed: Packed, sequence: Tokens) -> Tokens:
        rows = np.full((len(sequence), self.seq_len + 1), self.end, dtype=np.int64)
        for row, chosen in zip(rows, sequence, strict=True):
            place = 1
            for piece in range(packed.bins[chosen], packed.bins[chosen + 1]):
                start, length = packed.starts[piece], packed.lengths[piece]
                row[place : place + length] = self.prepared.train[start : start + length]
                place += length
        return rows

    def _windows(self, tokens: npt.NDArray[np.integer], sequence: Tokens) -> Tokens:
        return tokens[sequence[:, None] * self.seq_len + np.arange(self.seq_len + 1)].astype(np.int64)


def _sequences(split: str, tokens: npt.NDArray[np.integer], seq_len: int) -> int:
    count = (len(tokens) - 1) // seq_len
    if count < 1:
        raise UserError(
            f"the {split} split has {len(tokens):,} tokens, too few for one sequence of seq_len={seq_len}: "
            f"set Data.seq_len to at most {len(tokens) - 1}, or bring more text"
        )
    return count
