"""`nachim data membership` and `exposure`: what was learnt by heart is told from the rest, bad input in a sentence."""

from __future__ import annotations

import json
import random
import sys

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from nachim.app import cli
from nachim.data.canary import canary
from tests.app.exported import checkpoint
from tests.model.hf.parity import SMALL

WORDS = ["compass", "needle", "north", "ship", "wind", "sail", "harbour", "star", "chart", "rope", "tide", "deck"]


def texts(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=12)) for _ in range(12)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A checkpoint that has learnt some texts, and the first canary, by heart."""
    folder = checkpoint(tmp_path_factory.mktemp("reader"), LlamaConfig(**SMALL | {"vocab_size": 300}))
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [torch.tensor([tokenizer.encode(text).ids]) for text in [*texts(0), canary(0, 0)]]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(10):
        for x_BT in rows:
            model(x_BT, labels=x_BT).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "asked.jsonl"
    rows = [
        {"id": f"{seed}-{i}", "text": text, "read": seed == 0} for seed in (0, 1) for i, text in enumerate(texts(seed))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "empty", "text": "a", "read": False}]))
    return path


@pytest.fixture
def nachim(monkeypatch, capsys):
    """The command line, `nachim data ...`: exit status, output and error output."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nachim", "data", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        return ended.value.code or 0, found.out, found.err

    return run


def test_what_was_read_is_told_from_what_was_not(nachim, reader, asked, tmp_path):
    status, out, _ = nachim("membership", reader, asked, "--label", "read", "--out", tmp_path / "told.jsonl", "--json")
    told = json.loads(out)
    assert status == 0 and len(told["texts"]) == 24
    assert told["notes"] == ["1 left out: fewer than two tokens (first: empty)"]
    assert told["areas"]["loss"]["area"] == told["areas"]["min_k_plus"]["area"] == 1
    assert [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()] == told["texts"]
    _, said, _ = nachim("membership", reader, asked)
    assert "24 texts" in said and "min_k puts" not in said


def test_a_canary_that_was_learnt_is_exposed_and_another_is_not(nachim, reader):
    status, out, _ = nachim("exposure", reader, "--canaries", 2, "--references", 60, "--json")
    learnt, other = json.loads(out)["canaries"]
    assert status == 0 and learnt["text"] == canary(0, 0)
    assert learnt["ranked"] == pytest.approx(5.93, abs=0.01), "log2 of 61"
    assert other["ranked"] < 5.9 and learnt["loss"] < other["loss"]


def test_bad_input_is_one_sentence(nachim, reader, asked, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"id": 1, "text": "a"}\n')
    for words, said in (
        (("membership", reader, asked, "--share", 0), "--share is 0"),
        (("membership", reader, asked, "--label", "known"), "does not say true or false under 'known'"),
        (("membership", reader, empty), "no text in"),
        (("membership", tmp_path, asked), str(tmp_path)),
        (("exposure", reader, "--canaries", 0), "--canaries is 0"),
        (("exposure", reader, "--references", 3), "references or more; there are 3"),
    ):
        status, out, error = nachim(*words)
        *stages, sentence = error.splitlines()
        assert (status, out) == (2, "") and said in sentence and set(stages) <= {"asking the model"}
