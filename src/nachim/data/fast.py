"""Byte-level BPE through tiktoken, where that must come to the ids of `tokenizers`: the same ones, in a quarter of the
time.

The two differ in how they merge. `tokenizers` joins two parts that are one of its merges, the earliest first; tiktoken
joins any two whose bytes are a token, that of least rank first. Parts side by side got there by merges between their
own outer ends, and so by the very steps that their bytes alone would take: two parts can only become a token as they do
in the token's own bytes. Both therefore take the same steps on any text if the last two parts of every token, merged by
rank, are one of the merges, and these merges come in the order of the ranks. `in_merge_order` looks at each.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, pre_tokenizers

from nachim.data.tiktoken import PATTERNS, Pair, last_pair, signs

if TYPE_CHECKING:
    import tiktoken

LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA.replace(r"\p{N}{1,3}", r"\p{N}")
CUTS = frozenset({*PATTERNS.values(), LLAMA, QWEN})
"""Expressions by which both libraries cut alike, but for characters that their tables class differently."""
CLASSES = (r"\p{L}", r"\p{N}", r"\s", r"(?i:[sdmtlvre])")
"""What those expressions ask of a character."""
ALIKE, APART = 1, 2
WORTH_BYTES = 200
"""Looking at a token takes as long as `tokenizers` takes for some hundred bytes: with less text it is not worth it."""
PARTS = 4
"""Into how many a thread's texts are cut: some have more of the long ones than others."""

Ids = npt.NDArray[np.uint32]
Encoder = Callable[[Sequence[str]], list[Ids]]


def encoder(tokenizer: Tokenizer, size: int) -> Encoder:
    """What gives the ids of each of some texts, that have `size` bytes of UTF-8 together, without special tokens.

    It is `tokenizer` itself where tiktoken would not surely do the same, or where there is little text.
    """
    fast = Fast.of(tokenizer) if size >= WORTH_BYTES * tokenizer.get_vocab_size() else None
    if fast is not None:
        return fast

    def plain(texts: Sequence[str]) -> list[Ids]:
        found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.uint32) for one in found]

    return plain


class Fast:
    """A `tokenizer` whose merges tiktoken carries out: `tokens` are the ids by their bytes, in the order of ranks."""

    def __init__(self, tokenizer: Tokenizer, cut: str, tokens: Mapping[bytes, int]) -> None:
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(tokens)}
        # never asked for: without a special token the library looks everywhere for the empty one
        special = {"<|endoftext|>": len(ranks)}
        self.tokenizer, self.ids = tokenizer, np.array(list(tokens.values()), dtype=np.uint32)
        self.sizes = np.array([len(token) for token in tokens], dtype=np.int64)
        self.encoding = tiktoken.Encoding(cut, pat_str=cut, mergeable_ranks=ranks, special_tokens=special)
        self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Fast | None:
        """The same as `tokenizer`, faster. None unless that is byte-level BPE which cuts by one of `CUTS`, changes no
        text before, looks for no added tokens in it, and whose merges come `in_merge_order`."""
        told = json.loads(tokenizer.to_str())
        cut = _cut(told)
        if cut is None or not _plain(told["model"]) or not _all_text(tokenizer, told["added_tokens"]):
            return None
        tokens = _tokens(told["model"])
        return None if tokens is None else cls(tokenizer, cut, tokens)

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        if self.threads == 1 or len(texts) == 1:
            return [self.one(text) for text in texts]
        step = -(-len(texts) // (PARTS * self.threads))
        parts = [texts[i : i + step] for i in range(0, len(texts), step)]
        with ThreadPoolExecutor(self.threads) as pool:
            found = pool.map(lambda part: [self.one(text) for text in part], parts)
            return list(itertools.chain.from_iterable(found))

    def one(self, text: str) -> Ids:
        """The ids of `text`, by `tokenizers` where it has characters classed apart, or is not cut by tiktoken."""
        if text.isascii() or not odd(text):
            ranks = self._ranks(text)
            # text that the expression passes over is dropped by the one library and kept by the other
            if ranks is not None and self.sizes[ranks].sum() == len(text.encode()):
                return self.ids[ranks]
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def _ranks(self, text: str) -> Ids | None:
        """None where its engine gives up, on white space of a megabyte or so."""
        try:
            return self.encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError:
            return None


def _cut(told: Mapping[str, Any]) -> str | None:
    """The expression that text is cut by; None where more or other is done to it."""
    cutting = told["pre_tokenizer"] or {}
    *before, last = cutting["pretokenizers"] if cutting.get("type") == "Sequence" else [cutting]
    if told["normalizer"] is not None or last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        return None if before else PATTERNS["gpt2"]
    if len(before) != 1 or before[0]["type"] != "Split":
        return None
    cut, whole = before[0]["pattern"].get("Regex"), before[0]["behavior"] == "Isolated" and not before[0]["invert"]
    return cut if cut in CUTS and whole else None


def _plain(model: Mapping[str, Any]) -> bool:
    """Whether a model merges bytes, and does nothing else."""
    besides = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return model["type"] == "BPE" and not any(model[name] for name in besides)


def _all_text(tokenizer: Tokenizer, added: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no added token is looked for in a text."""
    return not added or (tokenizer.encode_special_tokens and all(token["special"] for token in added))


def _tokens(model: Mapping[str, Any]) -> dict[bytes, int] | None:
    """The ids by bytes, in the order of ranks; None where a byte has none, or ranks would merge otherwise."""
    byte_of = {sign: byte for byte, sign in enumerate(signs())}
    known = byte_of.keys()
    written = {token: bytes(map(byte_of.__getitem__, token)) for token in model["vocab"] if known >= set(token)}
    ids = {raw: model["vocab"][token] for token, raw in written.items()}
    if any(left not in written or right not in written for left, right in model["merges"]):
        return None
    merges = [(written[left], written[right]) for left, right in model["merges"]]
    letters = [bytes([byte]) for byte in range(256)]
    if any(letter not in ids for letter in letters):
        return None
    # a piece that is a token as it stands is taken whole, merges or no merges
    whole = ids if model["ignore_merges"] else {}
    kept = in_merge_order(list(dict.fromkeys([*letters, *(a + b for a, b in merges), *whole])), merges, bool(whole))
    return None if kept is None else {token: ids[token] for token in kept}


def in_merge_order(tokens: Sequence[bytes], merges: Sequence[Pair], whole: bool) -> list[bytes] | None:
    """Those of `tokens`, which are in the order of ranks, that text comes to; None where by rank it would come to
    others than by `merges`. With `whole` also those that only a piece of text as a whole comes to."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    place_of = {pair: place for place, pair in enumerate(merges)}
    kept, last = [], -1
    for token in tokens:
        pair = last_pair(token, ranks)
        if pair is not None:
            place = place_of.get(pair, -1)
            if place <= last:
                return None
            last = place
        if pair is not None or whole or len(token) == 1:
            kept.append(token)
    return kept


def odd(text: str) -> bool:
    """Whether `text` has a character that the two libraries, of other ages of Unicode, class differently."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    judged = _judged()
    found = judged[points]
    if not found.all():
        fresh = np.unique(points[found == 0])
        judged[fresh] = np.where(_classed_apart(fresh), APART, ALIKE)
        found = judged[points]
    return bool((found == APART).any())


@functools.cache
def _judged() -> npt.NDArray[np.uint8]:
    """What is known of each code point: 0 for nothing, `ALIKE` or `APART`."""
    return np.zeros(0x110000, dtype=np.uint8)


def _classed_apart(points: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Whether the libraries disagree on each code point [n], as they themselves say."""
    every, apart = points.tobytes().decode("utf-32-le"), np.zeros(len(points), dtype=bool)
    for theirs, others in _classes():
        one = set(bytes(theirs.encode_ordinary(every)).decode())
        other = set(every) - {sign for piece, _ in others.pre_tokenize_str(every) for sign in piece}
        apart |= np.array([(sign in one) != (sign in other) for sign in every])
    return apart


@functools.cache
def _classes() -> list[tuple[tiktoken.Encoding, pre_tokenizers.PreTokenizer]]:
    """What picks the characters of each class out of a text, and what leaves the others."""
    import tiktoken

    letters = {bytes([byte]): byte for byte in range(256)}
    return [
        (
            tiktoken.Encoding(kind, pat_str=kind, mergeable_ranks=letters, special_tokens={"<|endoftext|>": 256}),
            pre_tokenizers.Split(Regex(kind), "removed"),
        )
        for kind in CLASSES
    ]
