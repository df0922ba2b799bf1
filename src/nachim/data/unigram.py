"""Unigram tokenizers (Kudo, arXiv 1804.10959) over bytes: nothing is ever unknown, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nachim.spec.data import Unigram
from nachim.spec.error import UserError

WORDS = r" ?\S+|\s"
"""A word takes the space before it; other white space stands alone."""
LINES = r"[^\n]*\n|[^\n]+"
NEVER = -1e6
"""The log-probability of the end-of-text piece: its name in a document is spelt in bytes, which cost less."""

DIGITS = 4
"""Digits of log-probabilities after the point."""


def train_unigram(spec: Unigram, texts: Iterable[str], end: str) -> Tokenizer:
    """A tokenizer of `spec.vocab_size` pieces, the first of which is `end`; every byte is one.

    The library adds up in no fixed order: scores are rounded, so that they come out the same each time, but of pieces
    that are worth the same it may keep another. Raises UserError when the texts yield fewer pieces.
    """
    tokenizer = Tokenizer(models.Unigram())
    cut = pre_tokenizers.Split(Regex(WORDS if spec.whitespace else LINES), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=[end],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found < spec.vocab_size:
        raise UserError(
            f"the train split yields only {found} different pieces: set Unigram.vocab_size to at most {found}, "
            "or bring more text"
        )
    told = json.loads(tokenizer.to_str())
    pieces = [(piece, round(score, DIGITS)) for piece, score in told["model"]["vocab"][1:]]
    told["model"]["vocab"] = [(end, NEVER), *sorted(pieces, key=lambda one: (-one[1], one[0]))]
    return Tokenizer.from_str(json.dumps(told))
