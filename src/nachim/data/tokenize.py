"""Byte-level tokenizers: lossless on any UTF-8, with the exact raw bytes behind every token."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nachim.data.fast import encoder
from nachim.data.spool import Spool
from nachim.data.unigram import train_unigram
from nachim.spec.data import BPE, TokenizerFile, Unigram
from nachim.spec.error import UserError, nearest

EOT = "<|endoftext|>"
EOT_ID = 0
# Merges of a few hundred to some ten thousand tokens have settled by then, and training stays within seconds.
SAMPLE_BYTES = 6_000_000
# Its trainer keeps every substring that comes twice, and goes over all of them many times.
UNIGRAM_BYTES = 1_000_000
BATCH_BYTES = 2_000_000
# A pair that stands once in the sample is not worth a token.
MIN_FREQUENCY = 2


@functools.singledispatch
def tokenizer_text(spec: BPE | Unigram | TokenizerFile, spool: Spool, train: npt.NDArray[np.int64]) -> str:
    """The tokenizer of `spec` as the text of its file; one that is to be trained is, on the `train` split of `spool`.

    Raises UserError where it cannot be had.
    """
    raise TypeError(f"no tokenizer of {type(spec).__name__}")


@tokenizer_text.register
def _(spec: BPE, spool: Spool, train: npt.NDArray[np.int64]) -> str:
    return train_tokenizer(spec, spool, train).to_str(pretty=True)


@tokenizer_text.register
def _(spec: Unigram, spool: Spool, train: npt.NDArray[np.int64]) -> str:
    chosen = sample(spool, train, UNIGRAM_BYTES)
    return train_unigram(spec, (spool[i].decode() for i in chosen), EOT).to_str(pretty=True)


@tokenizer_text.register
def _(spec: TokenizerFile, spool: Spool, train: npt.NDArray[np.int64]) -> str:
    text = text_of_file(spec)
    tokenizer = parse_tokenizer(text, spec.path)
    size = tokenizer.get_vocab_size()
    if size > spec.vocab_size:
        spec.refuse("vocab_size", f"is {spec.vocab_size}, and {spec.path} has {size} tokens")
    if tokenizer.token_to_id(spec.end) is None:
        special = [one.content for one in tokenizer.get_added_tokens_decoder().values() if one.special]
        spec.refuse("end", f"is {spec.end!r}, which {spec.path} does not have{nearest(spec.end, special)}")
    return text


def text_of_file(spec: TokenizerFile) -> str:
    """What stands in the file of `spec`. Raises UserError where it cannot be read."""
    try:
        return Path(spec.path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"TokenizerFile.path: {spec.path} cannot be read ({error}): name a tokenizer.json") from error


def parse_tokenizer(text: str, name: str) -> Tokenizer:
    """The tokenizer written as `text`, as `load_tokenizer` gives it. Raises UserError unless it is byte-level."""
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises this very class
        raise UserError(f"{name} is not a tokenizer.json: {error}") from error
    kind = (json.loads(text).get("decoder") or {}).get("type")
    if kind != "ByteLevel":
        raise UserError(
            f"{name} has a decoder of the kind {kind}, and only of byte-level tokenizers are the bytes of a token "
            "known: take a model with such a one"
        )
    return _as_text(tokenizer)


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


def sample(spool: Spool, train: npt.NDArray[np.int64], size: int | None = None) -> npt.NDArray[np.int64]:
    """Evenly spaced documents of `train` that hold at most `size` bytes (`SAMPLE_BYTES`), or one that holds more."""
    size = SAMPLE_BYTES if size is None else size
    sizes = spool.sizes
    stride = min(len(train), max(1, math.ceil(sizes[train].sum() / size)))
    spaced = train[(stride - 1) // 2 :: stride]
    return spaced[: max(1, int(np.searchsorted(np.cumsum(sizes[spaced]), size, side="right")))]


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer stored at `path`; the name of the end-of-text token in a document is text to it."""
    return _as_text(Tokenizer.from_file(str(path)))


def _as_text(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer` set to encode whole documents, in which the names of special tokens are text."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_of(recipe: Mapping[str, Any]) -> str:
    """The end-of-text token of a tokenizer's spec, written as JSON."""
    return str(recipe.get("end", EOT))


def bytes_per_token(tokenizer: Tokenizer, end: str = EOT) -> npt.NDArray[np.int64]:
    """Raw bytes of each token id, from 0 to the last; the token `end` has none, nor has an id that is not given."""
    # The byte-level alphabet writes each byte as one character; tokens that were added to it stand as they are.
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_tokens_decoder()
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for token, i in vocabulary.items():
        lengths[i] = len(token.encode() if i in added else token)
    lengths[vocabulary[end]] = 0
    return lengths


def encode(
    tokenizer: Tokenizer, spool: Spool, documents: npt.NDArray[np.int64], end: str = EOT
) -> Iterator[list[npt.NDArray[np.uint32]]]:
    """The tokens of each document in order, the token `end` last, some `BATCH_BYTES` of text at a time."""
    end_id, ids_of = np.uint32(tokenizer.token_to_id(end)), encoder(tokenizer, int(spool.sizes[documents].sum()))
    batch = np.cumsum(spool.sizes[documents]) // BATCH_BYTES
    for chosen in np.split(documents, np.flatnonzero(np.diff(batch)) + 1):
        texts = [spool[i].decode() for i in chosen]
        yield [np.append(ids, end_id) for ids in ids_of(texts)]
