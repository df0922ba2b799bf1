"""A tokenizer that stands in a file gives the tokens it gives elsewhere, and the bytes behind each are exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nachim.data.prepare import prepare
from nachim.data.prepared import TOKENIZER
from nachim.spec.data import TokenizerFile
from nachim.spec.error import UserError


@pytest.fixture
def foreign(tmp_path):
    """As checkpoints carry it: bytes in another order, a special end, added words, and a limit on length."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ba", "rn", "Ġm"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("b", "a"), ("r", "n"), ("Ġ", "m")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("나", normalized=False)])
    tokenizer.enable_truncation(8)
    path = tmp_path / "foreign.json"
    tokenizer.save(str(path))
    return TokenizerFile(path=str(path), vocab_size=300, end="<|end|>")


def test_the_tokens_are_those_of_the_corpus_that_trained_it(data, prepared, tmp_path):
    file = TokenizerFile(path=str(prepared.folder / TOKENIZER), vocab_size=300)
    again = prepare(dataclasses.replace(data, tokenizer=file), tmp_path / "cache")
    assert np.array_equal(again.train, prepared.train)
    assert np.array_equal(again.validation, prepared.validation)
    assert again.fingerprint != prepared.fingerprint
    assert again.notes() == prepared.notes()


def test_a_file_is_known_by_its_content_wherever_it_stands(data, foreign, tmp_path):
    first = prepare(dataclasses.replace(data, tokenizer=foreign), tmp_path / "cache")
    moved = tmp_path / "moved.json"
    moved.write_bytes((tmp_path / "foreign.json").read_bytes())
    assert (first.folder / TOKENIZER).read_bytes() == moved.read_bytes()
    moved_data = dataclasses.replace(data, tokenizer=dataclasses.replace(foreign, path=str(moved)))
    assert prepare(moved_data, tmp_path / "cache").folder == first.folder


def test_tokens_of_another_s_tokenizer_stand_for_all_bytes(data, foreign, folder, tmp_path):
    found = prepare(dataclasses.replace(data, tokenizer=foreign), tmp_path / "cache")
    end = found.tokenizer.token_to_id("<|end|>")
    for split, documents in ((found.train, found.train_documents), (found.validation, found.validation_documents)):
        assert (split == end).sum() == len(documents)
    assert found.bytes_per_token[found.train].sum() == found.train_bytes
    assert found.bytes_per_token[found.tokenizer.token_to_id("나")] == 3
    pieces = np.split(found.train, found.train_documents[1:])
    texts = {path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert {found.tokenizer.decode(piece[:-1].tolist(), skip_special_tokens=False) for piece in pieces} <= texts


def test_what_a_normaliser_changes_is_told(data, foreign, tmp_path):
    tokenizer = Tokenizer.from_file(foreign.path)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save(foreign.path)
    found = prepare(dataclasses.replace(data, tokenizer=foreign), tmp_path / "cache")
    assert any("bits per byte are of the latter" in note for note in found.notes())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": "/nowhere.json"}, "cannot be read"),
        ({"end": "<|ende|>"}, "does not have; did you mean '<|end|>'"),
        ({"vocab_size": 200}, "vocab_size is 200, and .* has 261 tokens"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(data, foreign, tmp_path, change, said):
    asked = dataclasses.replace(data, tokenizer=dataclasses.replace(foreign, **change))
    with pytest.raises(UserError, match=said):
        prepare(asked, tmp_path / "cache")


def test_a_tokenizer_whose_bytes_nobody_knows_is_refused(data, foreign, tmp_path):
    path = tmp_path / "words.json"
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    for content, said in ((path.read_text(), "only of byte-level tokenizers"), ("{}", "is not a tokenizer.json")):
        path.write_text(content)
        with pytest.raises(UserError, match=said):
            prepare(dataclasses.replace(data, tokenizer=TokenizerFile(path=str(path), vocab_size=300)), tmp_path / "c")
