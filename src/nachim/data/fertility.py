"""What a tokenizer makes of text: bytes and words a token, by file and by kind of character; and what it costs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from nachim.data.fast import encoder
from nachim.data.passage import WORD
from nachim.data.tokenize import bytes_per_token

KINDS = (
    *("letters", "digits", "white space", "other ASCII", "two-byte scripts", "Hangul", "Han", "kana"),
    *("other three-byte scripts", "four bytes: emoji and rare scripts"),
)
_HANGUL = ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7A3))
_HAN = ((0x2E80, 0x2FDF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
_KANA = ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """Text of one kind: its `bytes`, and the `tokens` spent on it; one that covers several kinds is dealt by bytes."""

    bytes: int
    tokens: float

    @property
    def bytes_per_token(self) -> float:
        """Higher is cheaper."""
        return self.bytes / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Fertility:
    """What a tokenizer makes of some texts. `lossless` counts those that come back byte for byte.

    `used` is the share of the vocabulary that stands in them. Kinds are told of lossless texts alone.
    """

    texts: int
    lossless: int
    whole: Share
    words: int
    used: float
    kinds: dict[str, Share]

    @property
    def tokens_per_word(self) -> float:
        """The fertility; a word is one of `nachim.data.passage.WORD`."""
        return self.whole.tokens / self.words if self.words else 0.0


def fertility(tokenizer: Tokenizer, end: str, texts: Sequence[str]) -> Fertility:
    """What `tokenizer`, whose end-of-text token is `end`, makes of `texts`."""
    sizes, kind_of = bytes_per_token(tokenizer, end), _kinds()
    bytes_of, tokens_of = np.zeros(len(KINDS)), np.zeros(len(KINDS))
    seen, lossless, total, tokens, words = np.zeros(len(sizes), dtype=bool), 0, 0, 0, 0
    ids_of = encoder(tokenizer, sum(len(text) for text in texts))
    for text, ids in zip(texts, ids_of(texts), strict=True):
        size = len(text.encode())
        seen[ids] = True
        total, tokens, words = total + size, tokens + len(ids), words + len(WORD.findall(text))
        if tokenizer.decode(ids.tolist(), skip_special_tokens=False) != text or sizes[ids].sum() != size:
            continue
        lossless += 1
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        kinds = np.repeat(kind_of[points], 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF))
        bytes_of += np.bincount(kinds, minlength=len(KINDS))
        tokens_of += np.bincount(kinds, weights=np.repeat(1 / sizes[ids], sizes[ids]), minlength=len(KINDS))
    found = {
        name: Share(int(size), float(spent))
        for name, size, spent in zip(KINDS, bytes_of, tokens_of, strict=True)
        if size
    }
    return Fertility(len(texts), lossless, Share(total, tokens), words, float(seen.mean()), found)


@functools.cache
def _kinds() -> npt.NDArray[np.uint8]:
    """The place in `KINDS` of every code point."""
    kinds = np.full(0x110000, KINDS.index("four bytes: emoji and rare scripts"), dtype=np.uint8)
    kinds[:0x10000] = KINDS.index("other three-byte scripts")
    kinds[:0x800] = KINDS.index("two-byte scripts")
    for point in range(0x80):
        sign = chr(point)
        name = "letters" if sign.isalpha() else "digits" if sign.isdigit() else "other ASCII"
        kinds[point] = KINDS.index("white space" if sign.isspace() else name)
    for name, ranges in (("Hangul", _HANGUL), ("Han", _HAN), ("kana", _KANA)):
        for first, last in ranges:
            kinds[first : last + 1] = KINDS.index(name)
    return kinds


def embedding_share(vocab_size: int, d_model: int, n_layers: int, tied: bool) -> float:
    """The share of a plain decoder's parameters that its vocabulary takes: V·d, twice if untied, beside 12·L·d²."""
    rows = (1 if tied else 2) * vocab_size * d_model
    return rows / (rows + 12 * n_layers * d_model**2)
