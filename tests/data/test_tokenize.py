"""The tokenizer loses nothing, counts bytes exactly, and comes out the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nachim.data import tokenize
from nachim.data.spool import spool
from nachim.data.tokenize import bytes_per_token, encode, load_tokenizer, sample, train_tokenizer
from nachim.spec.data import BPE
from nachim.spec.error import UserError

ODD = ["<|endoftext|>", "a\r\n\tb  \n\n", "나침 🧭 e\u0301", "\x00\x1c\u2028\ufeff", "'s don't 12345", " ", "Ġ\u0120"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory, text):
    """50 documents."""
    return spool([text(i, 60).encode() for i in range(50)], tmp_path_factory.mktemp("spool") / "documents")


@pytest.fixture(scope="module")
def tokenizer(stored, tmp_path_factory):
    """300 tokens trained on all of `stored`."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_tokenizer(BPE(vocab_size=300), stored, np.arange(50)).to_str())
    return load_tokenizer(path)


def check(tokenizer, string):
    ids = tokenizer.encode(string, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == string
    assert bytes_per_token(tokenizer)[ids].sum() == len(string.encode())
    assert 0 not in ids


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_nothing_is_lost(tokenizer, string):
    check(tokenizer, string)


@pytest.mark.parametrize("string", ODD)
def test_nothing_is_lost_of_odd_texts(tokenizer, string):
    check(tokenizer, string)


def test_every_byte_has_a_token_and_the_end_of_text_has_no_bytes(tokenizer):
    lengths = bytes_per_token(tokenizer)
    assert len(lengths) == 300
    assert lengths[0] == 0
    assert (lengths[1:257] == 1).all()
    assert (lengths[257:] > 1).all()
    assert tokenizer.token_to_id("<|endoftext|>") == 0


def test_training_is_deterministic(tokenizer, stored):
    again = train_tokenizer(BPE(vocab_size=300), stored, np.arange(50))
    assert again.to_str() == tokenizer.to_str()


def test_documents_end_in_the_end_of_text(tokenizer, stored, monkeypatch):
    chosen = np.array([7, 3, 40, 3])
    whole = [tokens for batch in encode(tokenizer, stored, chosen) for tokens in batch]
    assert [tokenizer.decode(tokens[:-1].tolist()).encode() for tokens in whole] == [stored[i] for i in chosen]
    assert all(tokens[-1] == 0 for tokens in whole)
    monkeypatch.setattr(tokenize, "BATCH_BYTES", 300)
    batches = list(encode(tokenizer, stored, chosen))
    assert len(batches) > 1
    assert [tokens.tolist() for batch in batches for tokens in batch] == [tokens.tolist() for tokens in whole]


def test_the_sample_is_spread_and_bounded(stored, monkeypatch):
    train = np.arange(10, 50)
    assert sample(stored, train).tolist() == train.tolist()
    total = stored.sizes[train].sum()
    monkeypatch.setattr(tokenize, "SAMPLE_BYTES", total // 4)
    picked = sample(stored, train)
    assert 0.15 * total < stored.sizes[picked].sum() <= total // 4
    assert len(set(np.diff(picked))) == 1
    monkeypatch.setattr(tokenize, "SAMPLE_BYTES", 1)
    assert len(sample(stored, train)) == 1


def test_a_text_with_too_few_tokens(stored):
    with pytest.raises(UserError, match=r"only \d+ different tokens: set BPE.vocab_size to at most \d+"):
        train_tokenizer(BPE(vocab_size=5000), stored, np.arange(50))
