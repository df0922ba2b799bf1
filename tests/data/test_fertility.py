"""The report of a tokenizer by hand, and tiktoken vocabularies against merging by rank."""

from __future__ import annotations

import base64
import itertools
import json
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nachim.app.cli import main
from nachim.data.fertility import embedding_share, fertility
from nachim.data.spool import spool
from nachim.data.tiktoken import read_tiktoken, signs
from nachim.data.tokenize import EOT, parse_tokenizer, tokenizer_text
from nachim.spec import BPE, UserError

TEXT = "the boats of the harbour, the hill of the town: 나침반 바늘 나침반\n" * 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A byte-level BPE tokenizer of 290 tokens, as text."""
    stored = spool([TEXT.encode()], tmp_path_factory.mktemp("spool") / "documents")
    return tokenizer_text(BPE(vocab_size=290), stored, np.array([0]))


@pytest.fixture(scope="module")
def ranks(trained, tmp_path_factory):
    """The same tokens as a tiktoken vocabulary: its path, and rank by token."""
    byte_of = {sign: byte for byte, sign in enumerate(signs())}
    merged = sorted(Tokenizer.from_str(trained).get_vocab().items(), key=lambda one: one[1])
    tokens = [bytes(byte_of[sign] for sign in token) for token, _ in merged if token != EOT]
    path = tmp_path_factory.mktemp("vocabulary") / "v.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)))
    return path, {token: i for i, token in enumerate(tokens)}


def merged(piece, ranks):
    """Ids of a piece: the pair of least rank is joined until none is known."""
    parts = [bytes([byte]) for byte in piece]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@settings(max_examples=50)
@given(st.text(st.sampled_from("the boatsfrul ,:나침반바늘")))
def test_a_tiktoken_vocabulary_gives_the_ids_of_merging_by_rank(ranks, text):
    path, of = ranks
    cut = re.findall(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+(?!\S)|\s+", text)
    tokenizer = read_tiktoken(path, "gpt2", EOT)
    wanted = [i for piece in cut for i in merged(piece.encode(), of)]
    assert tokenizer.encode(text, add_special_tokens=False).ids == wanted


@pytest.mark.parametrize("cut", ["gpt2", "cl100k"])
@pytest.mark.parametrize("text", [TEXT, "It's 12345\r\n\n  x 🧭 東京", EOT, "\x00 \u2028"])
def test_a_tiktoken_vocabulary_loses_nothing(ranks, cut, text):
    tokenizer = read_tiktoken(ranks[0], cut, EOT)
    again = parse_tokenizer(tokenizer.to_str(), "it")
    for one in (tokenizer, again):
        ids = one.encode(text, add_special_tokens=False).ids
        assert one.decode(ids, skip_special_tokens=False) == text
        assert one.token_to_id(EOT) == 289 not in ids


def test_kinds_and_fertility_by_hand(trained):
    tokenizer = parse_tokenizer(trained, "it")
    texts = ["ab 1,나é🧭漢か", "the town"]
    found = fertility(tokenizer, EOT, texts)
    assert (found.texts, found.lossless) == (2, 2)
    assert found.whole.bytes == sum(len(text.encode()) for text in texts)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert found.whole.tokens == sum(map(len, ids))
    assert {name: share.bytes for name, share in found.kinds.items()} == {
        **{"letters": 9, "digits": 1, "white space": 2, "other ASCII": 1, "two-byte scripts": 2, "Hangul": 3},
        **{"Han": 3, "kana": 3, "four bytes: emoji and rare scripts": 4},
    }
    assert sum(share.tokens for share in found.kinds.values()) == pytest.approx(found.whole.tokens)
    assert found.kinds["Hangul"].bytes_per_token > found.kinds["Han"].bytes_per_token == 1
    # ab, 1, the comma, then Hangul with é as one run of letters, the sign, two characters alone; the, town
    assert found.words == 9
    assert found.used == len(set(ids[0]) | set(ids[1])) / 290


def test_the_share_of_the_vocabulary():
    assert embedding_share(1000, 10, 1, tied=True) == pytest.approx(10_000 / 11_200)
    assert embedding_share(1000, 10, 1, tied=False) == pytest.approx(20_000 / 21_200)


def test_the_verb_reports_and_converts(trained, ranks, tmp_path, monkeypatch, capsys):
    (tmp_path / "tokenizer.json").write_text(trained, encoding="utf-8")
    (tmp_path / "ko.jsonl").write_text(json.dumps({"text": "나침반"}) + "\n")
    (tmp_path / "en.txt").write_text("the town\nthe hill\n")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["nachim", "data", "tokenizer", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr()

    files = (tmp_path / "ko.jsonl", tmp_path / "en.txt")
    status, said = run(tmp_path / "tokenizer.json", *files, "--json")
    found = json.loads(said.out)
    assert (status, found["vocab_size"], found["files"]["en.txt"]["lossless"]) == (0, 290, 2)
    status, said = run(ranks[0], *files, "--cut", "gpt2", "--save", tmp_path / "saved.json", "--json")
    assert json.loads(said.out)["files"]["ko.jsonl"]["kinds"] == found["files"]["ko.jsonl"]["kinds"]
    status, said = run(tmp_path / "saved.json", *files)
    assert (status, "bytes a token" in said.out) == (0, True)
    assert run(tmp_path / "tokenizer.json", *files, "--end", "</s>")[0] == 2
    assert run(tmp_path / "tokenizer.json", tmp_path / "none")[0] == 2


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "ranks are not"),
        (b"!! 0\n", "not base64"),
        (b"YQ== 0\n", "255 bytes have no token"),
        (b"YQ== 3\n", "ranks"),
    ],
)
def test_what_is_no_vocabulary_is_said(tmp_path, content, match):
    path = tmp_path / "v.tiktoken"
    path.write_bytes(content)
    with pytest.raises(UserError, match=match):
        read_tiktoken(path, "gpt2", EOT)
    with pytest.raises(UserError, match="cannot be read"):
        read_tiktoken(tmp_path / "none", "gpt2", EOT)
    with pytest.raises(UserError, match="known: cl100k, gpt2"):
        read_tiktoken(path, "x99", EOT)
