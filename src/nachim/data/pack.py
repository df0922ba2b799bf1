"""Tokens to sequences: train batches by global index, and fixed windows of the validation split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from nachim.data.order import position
from nachim.data.prepared import TOKENIZER, Prepared
from nachim.spec.data import Data
from nachim.spec.error import UserError

Tokens = npt.NDArray[np.int64]


class Batches:
    """Sequences of `data.seq_len` tokens and the next one: ``x[:, :-1]`` is read, ``x[:, 1:]`` is predicted.

    The loader's whole state is the index of the next sequence. Sequences are packed: a document may start in
    the middle of one and go on in another. Raises UserError when a split is shorter than one sequence.
    """

    def __init__(self, prepared: Prepared, data: Data) -> None:
        self.prepared, self.seq_len, self._seed = prepared, data.seq_len, data.seed
        self.sequences_per_epoch = _sequences("train", prepared.train, data.seq_len)
        self.validation_windows = _sequences("validation", prepared.validation, data.seq_len)

    @property
    def tokenizer(self) -> Path:
        """The file of the tokenizer."""
        return self.prepared.folder / TOKENIZER

    def batch(self, first_index: int, count: int) -> Tokens:
        """The `count` train sequences from global index `first_index` on: [count, seq_len + 1]."""
        return self.at(np.arange(first_index, first_index + count))

    def at(self, index: Tokens) -> Tokens:
        """The train sequences at each global index [count]: [count, seq_len + 1]."""
        return self._windows(self.prepared.train, position(self._seed, index, self.sequences_per_epoch))

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
