"""`nachim data vocab` as a script and a person see it."""

from __future__ import annotations

import json
import random
import sys

import pytest

from nachim.app import ask
from nachim.app.cli import main
from nachim.app.data_vocab import sentences, tabled
from nachim.app.vocab_page import loss, write_page

RECIPE = """
from nachim.spec import BPE, WSD, Data, Decoder, Files, Muon, Run, Train, plain

def run():
    data = Data(corpus=Files(path={path!r}, validation_bytes=2000), tokenizer=BPE(vocab_size=300), seq_len=16)
    train = Train(tokens=6400, batch_tokens=64, optimizer=Muon(lr=0.01), schedule=WSD())
    return Run(model=plain(d_model=16, n_layers=1, d_head=8, vocab_size=300), data=data, train=train)
"""


@pytest.fixture
def recipe(tmp_path):
    """A tiny run on a file of words."""
    words = ["boats", "harbour", "people", "town", "hill", "glad", "seen", "from", "north", "water", "winter", "isle"]
    chance = random.Random(0)
    texts = [" ".join(chance.choices(words, k=40)) for _ in range(400)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "recipe.py").write_text(RECIPE.format(path=str(tmp_path / "text.jsonl")))
    return tmp_path / "recipe.py"


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["nachim", "data", "vocab", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code, capsys.readouterr()


def one(size, bpb, over):
    ends = {"low": over - 0.01, "high": over + 0.01}
    counts = {"bytes_per_token": 2.5, "params_share": 0.4, "flops_share": 0.2, "tokens": 1000, "bytes": 2500}
    mean = sum(bpb) / 2
    return {"vocab_size": size, **counts, "epochs": 0.5, "bpb": bpb, "mean": mean, "over_best": over, **ends}


@pytest.fixture
def found():
    """A study's summary."""
    sizes = [one(512, [2.2, 2.3], 0.05), one(1024, [2.1, 2.2], 0.0), one(2048, [2.12, 2.2], 0.005)]
    optimum = {"vocab_size": 1300.0, "low": 900.0, "high": 1700.0}
    told = {"best": 1024, "alike": [1024, 2048], "noise": 0.004, "optimum": optimum}
    return {"flops": 12_000_000, "seeds": 2, "sizes": sizes, **told}


def test_counting_alone_speaks_json(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ask, "CACHE", tmp_path / "cache")
    words = (recipe, "--out", tmp_path / "study", "--sizes", 290, 265, "--seeds", 0, "--held-out-bytes", 3000)
    status, said = run(monkeypatch, capsys, *words, "--json")
    told = json.loads(said.out)
    assert status == 0
    assert [each["vocab_size"] for each in told["sizes"]] == [265, 290]
    assert told["sizes"][0]["flops_share"] < told["sizes"][1]["flops_share"]
    assert told["sizes"][0]["tokens"] > told["sizes"][1]["tokens"]
    status, said = run(monkeypatch, capsys, *words)
    assert (status, "nothing was trained" in said.out) == (0, True)
    assert "nothing was trained" in (tmp_path / "study" / "vocab.html").read_text()


def test_a_mistake_is_one_sentence(recipe, tmp_path, monkeypatch, capsys):
    status, said = run(monkeypatch, capsys, recipe, "--out", tmp_path / "study", "--sizes", 300)
    assert status == 2 and "give two or more" in said.err and said.err.count("\n") == 1


def test_people_are_told_the_best_and_what_it_cannot_be_told_from(found):
    assert sentences(found) == [
        "the best of these is 1,024, at 1.2e+07 FLOP a run, the head included; 2 seeds cannot tell it from 2,048",
        "a parabola has its bottom at 1,300 (900 to 1,700, within the sizes near the best)",
    ]
    assert "no bottom lies between" in sentences({**found, "optimum": None})[1]
    assert "one seed tells nothing" in sentences({**found, "noise": None, "alike": []})[0]
    cells = list(tabled(found).columns[-1].cells)
    assert cells == ["+5.00% (+4.00% to +6.00%)", "best", "+0.50% (-0.50% to +1.50%)"]


def test_the_page_draws_every_run(found, tmp_path):
    drawn = loss(found)
    assert [len(trace.x) for trace in drawn.data] == [3, 3, 3]
    assert list(drawn.data[-1].y) == [each["mean"] for each in found["sizes"]]
    assert [round(reach, 6) for reach in drawn.data[-1].error_y.array] == [round(2.15 * 0.01, 6)] * 3
    write_page(tmp_path / "vocab.html", found)
    page = (tmp_path / "vocab.html").read_text()
    assert all(said in page for said in ("best of these is 1,024", "bytes a token", "+5.00% (+4.00% to +6.00%)"))
