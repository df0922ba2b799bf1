"""Byte-level byte-pair encoding: lossless on any UTF-8, with the exact raw bytes behind every token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nachim.data.spool import Spool
from nachim.spec.data import BPE
from nachim.spec.error import UserError

EOT = "<|endoftext|>"
EOT_ID = 0
# Merges of a few hundred to some ten thousand tokens have settled by then, and training stays within seconds.
SAMPLE_BYTES = 6_000_000
BATCH_BYTES = 2_000_000
# A pair that stands once in the sample is not worth a token.
MIN_FREQUENCY = 2


def train_tokenizer(spec: BPE, spool: Spool, train: npt.NDArray[np.int64]) -> Tokenizer:
    """A tokenizer of exactly `spec.vocab_size` tokens, trained on the `sample` of the train split.

    Raises UserError when that text yields fewer tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(([spool[i].decode()] for i in sample(spool, train)), trainer)
    found = tokenizer.get_vocab_size()
    if found < spec.vocab_size:
        raise UserError(
            f"the train split yields only {found} different tokens: set BPE.vocab_size to at most {found}, "
            "or bring more text"
        )
    return tokenizer


def sample(spool: Spool, train: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Evenly spaced documents of `train` that together hold at most `SAMPLE_BYTES`, or one that holds more."""
    sizes = spool.sizes
    stride = min(len(train), max(1, math.ceil(sizes[train].sum() / SAMPLE_BYTES)))
    spaced = train[(stride - 1) // 2 :: stride]
    return spaced[: max(1, int(np.searchsorted(np.cumsum(sizes[spaced]), SAMPLE_BYTES, side="right")))]


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer stored at `path`; the name of the end-of-text token in a document is text to it."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def bytes_per_token(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Raw bytes of each token id [vocab_size]; the end-of-text token has none."""
    # The byte-level alphabet writes each byte as one character.
    lengths = [len(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
    lengths[EOT_ID] = 0
    return np.array(lengths, dtype=np.int64)


def encode(
    tokenizer: Tokenizer, spool: Spool, documents: npt.NDArray[np.int64]
) -> Iterator[list[npt.NDArray[np.uint32]]]:
    """The tokens of each document in order, end-of-text token last, some `BATCH_BYTES` of text at a time."""
    batch = np.cumsum(spool.sizes[documents]) // BATCH_BYTES
    for chosen in np.split(documents, np.flatnonzero(np.diff(batch)) + 1):
        texts = [spool[i].decode() for i in chosen]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        yield [np.array([*encoding.ids, EOT_ID], dtype=np.uint32) for encoding in encodings]
