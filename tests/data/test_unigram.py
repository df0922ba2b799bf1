"""Unigram tokenizers lose nothing of any script, keep to their cuts, and take the likeliest pieces."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from nachim.data.spool import spool
from nachim.data.tokenize import EOT, bytes_per_token, parse_tokenizer, sample, tokenizer_text
from nachim.data.unigram import NEVER, train_unigram
from nachim.spec import Unigram, UserError

WORDS = {
    "en": ["boats", "harbour", "people", "town", "hill", "glad", "seen", "from", "north", "water", "winter", "island"],
    "ko": ["마을", "사람들은", "배를", "보았다", "기뻐했다", "바다에서", "돌아온", "아침에", "겨울", "섬으로"],
    "ja": ["町の", "人々は", "船を", "見た", "喜んだ", "海から", "帰った", "朝に", "冬の", "島へ"],
    "code": ["self.step(x)", "return", "def run(self):", "for i in range(10):", "if x is None:", "import os", "x += 1"],
}


def made(language, seed):
    """Sixty lines of words drawn; Japanese has no spaces between them."""
    chance = random.Random(seed)
    between = "" if language == "ja" else " "
    return "".join(between.join(chance.choices(WORDS[language], k=6)) + "\n" for _ in range(60))


PROSE = [made(language, seed) for seed in range(3) for language in WORDS]
SCRIPTS = [
    "나침반 바늘",
    "東京へ行く、また来る。",
    "中文没有空格，也能编码",
    "🧭👩‍👩‍👧 é e\u0301",
    "if x:\n\treturn {'a': 1}\r\n",
    EOT,
    "Ġ▁ \x00\u2028",
]


@pytest.fixture(scope="module", params=[True, False])
def tokenizer(request):
    """320 pieces, with and without cuts at white space."""
    spec = Unigram(vocab_size=320, whitespace=request.param)
    return parse_tokenizer(train_unigram(spec, PROSE, EOT).to_str(), "it"), request.param


def check(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert bytes_per_token(tokenizer)[ids].sum() == len(text.encode())
    assert 0 not in ids


@settings(max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_nothing_is_lost(tokenizer, text):
    check(tokenizer[0], text)


@settings(max_examples=30)
@given(text=st.text(st.sampled_from("가나다라漢字東かなカナ🧭👩‍👧 \n\t{}()=:'_")))
def test_nothing_is_lost_of_scripts_and_code(tokenizer, text):
    check(tokenizer[0], text)


@pytest.mark.parametrize("text", [*SCRIPTS, *PROSE[:4]])
def test_nothing_is_lost_of_texts(tokenizer, text):
    check(tokenizer[0], text)


def test_pieces_keep_to_their_cuts(tokenizer):
    tokenizer, whitespace = tokenizer
    byte_of = {sign: byte for byte, sign in _alphabet().items()}
    pieces = [bytes(byte_of[sign] for sign in token) for token in tokenizer.get_vocab() if token != EOT]
    assert len(pieces) == 319
    assert {bytes([byte]) for byte in range(256)} <= set(pieces)
    spaced = [piece for piece in pieces if b" " in piece[1:]]
    assert bool(spaced) != whitespace
    assert all(b"\n" not in piece[:-1] for piece in pieces)
    assert tokenizer.token_to_id(EOT) == 0


def _alphabet():
    """Of every byte the sign that stands for it."""
    printed = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    table = {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    assert set(table.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    return table


def test_the_likeliest_pieces_are_taken(tokenizer):
    tokenizer, _ = tokenizer
    scores = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    text = "people"
    best = [0.0] + [-np.inf] * len(text)
    for end in range(1, len(text) + 1):
        for begin in range(end):
            if text[begin:end] in scores:
                best[end] = max(best[end], best[begin] + scores[text[begin:end]])
    tokens = tokenizer.encode(text, add_special_tokens=False).tokens
    assert sum(scores[token] for token in tokens) == pytest.approx(best[-1])


def test_it_is_trained_on_the_train_split_and_comes_out_nearly_the_same(tmp_path):
    stored = spool([text.encode() for text in PROSE], tmp_path / "documents")
    spec = Unigram(vocab_size=300)
    one, other = (json.loads(tokenizer_text(spec, stored, np.arange(12)))["model"]["vocab"] for _ in range(2))
    assert len(one) == len(other) == 300
    assert one[0] == other[0] == [EOT, NEVER]
    assert [-score for _, score in one[1:]] == sorted(-score for _, score in one[1:])
    shared = dict(one).keys() & dict(other).keys()
    assert len(shared) >= 296  # of pieces worth the same the library keeps now one, now another
    assert [dict(one)[piece] for piece in shared] == pytest.approx([dict(other)[piece] for piece in shared], abs=0.02)
    assert len(sample(stored, np.arange(12), 200)) == 1
    with pytest.raises(UserError, match=r"only \d+ different pieces: set Unigram.vocab_size"):
        tokenizer_text(Unigram(vocab_size=5000), stored, np.arange(12))


def test_too_few_pieces_for_bytes_are_refused():
    with pytest.raises(UserError, match="at least 257"):
        Unigram(vocab_size=256)
