"""tiktoken vocabularies (a token in base64 and its rank on each line) as tokenizers of the library we use."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from nachim.spec.error import UserError, nearest

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"(?i:'(?:[sdmt]|ll|ve|re))|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
}
"""How text is cut before its pieces are merged, by the name of the vocabulary."""
Pair = tuple[bytes, bytes]


def read_tiktoken(path: Path, cut: str, end: str) -> Tokenizer:
    """The vocabulary in `path`, its text cut as `PATTERNS[cut]` says, with the token `end` after the last rank.

    Raises UserError where the file is none, or lacks a byte or a rank.
    """
    if cut not in PATTERNS:
        raise UserError(f"no way of cutting text is called {cut!r}{nearest(cut, PATTERNS)}")
    ranks = _ranks(path)
    sign = signs()
    vocabulary = {"".join(sign[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = [tuple("".join(sign[byte] for byte in part) for part in pair) for pair in _merges(ranks)]
    # a piece that is a token as it stands is taken whole, as tiktoken does
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERNS[cut]), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(end, special=True)])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _ranks(path: Path) -> dict[bytes, int]:
    try:
        pairs = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, binascii.Error) as error:
        raise UserError(f"{path} is no tiktoken vocabulary: a line is not base64 and a rank ({error})") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or not ranks:
        raise UserError(f"{path} is no tiktoken vocabulary: its ranks are not 0, 1, 2, ...")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(f"{path} is no tiktoken vocabulary: {len(missing)} bytes have no token of their own")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[Pair]:
    """The two parts that each token is merged from, in the order of ranks. A token that merging does not lead to has
    none."""
    pairs = (last_pair(token, ranks) for token in sorted(ranks, key=lambda token: ranks[token]))
    return [pair for pair in pairs if pair is not None]


def last_pair(token: bytes, ranks: Mapping[bytes, int]) -> Pair | None:
    """The two parts that merging by rank leaves of a token last; None where more are left, or it is a byte."""
    parts, none = [token[i : i + 1] for i in range(len(token))], len(ranks)
    while len(parts) > 2:
        found = [ranks.get(a + b, none) for a, b in itertools.pairwise(parts)]
        least = min(found)
        if least == none:
            return None
        i = found.index(least)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def signs() -> list[str]:
    """The sign that stands for each byte in byte-level vocabularies: itself where it is printed, else from 256 on."""
    printed = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]
