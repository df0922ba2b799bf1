"""Generations that learn from generations: what each reads, that a study goes on where it was, what collapse is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nachim.app.collapse import PAGE, open_collapse, sentences, told_of
from nachim.data.read import Report
from nachim.data.shards import read_shard
from nachim.data.source import open_source
from nachim.evaluate.generation import Measured
from nachim.infer.folder import opened as loaded
from nachim.lab.collapse import Arm, Collapse, Criterion, Row, Study, collapses
from nachim.lab.work import Place
from nachim.lab.written import Writing, written
from nachim.spec import BPE, WSD, AdamW, Data, Files, Run, Train, UserError, Validation, plain
from nachim.train.loop import Watch
from nachim.train.stopping import Stopped
from tests.lab.tiny import write_corpus

ALONE, KEPT = Arm(keep="replace", human=0.0), Arm(keep="accumulate", human=None)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "pages", documents=40)


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory) -> tuple[Path, list[Row]]:
    """A study of one arm and one generation, done in one go."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nachim.lab.written.DOCUMENTS", 12)
        return out, list(opened(study_of(text, ALONE), out).rows())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr("nachim.lab.written.DOCUMENTS", 12)


def study_of(text: Path, *arms: Arm, **changes: object) -> Collapse:
    data = Data(corpus=Files(path=str(text)), tokenizer=BPE(vocab_size=300), seq_len=16, mask_documents=True)
    schedule = WSD(warmup_tokens=64)
    run = Run(
        model=plain(d_model=16, n_layers=1, d_head=8, vocab_size=300),
        data=data,
        train=Train(tokens=1280, batch_tokens=64, optimizer=AdamW(lr=0.02), schedule=schedule),
        validation=Validation(tokens=64),
    )
    fields = {"generations": 1, "seeds": 1, "text_bytes": 1500, "passage": 30, "top_p": 0.6}
    return Collapse(run=run, arms=arms, **{**fields, **changes})


def opened(spec: Collapse, out: Path, stopping=lambda: False) -> Study:
    return Study(spec, out, Place(cache=out / "cache"), lambda what, done: None, Watch(stopping=stopping))


def test_what_a_generation_reads():
    assert Arm(keep="replace", human=0.25).weights(3) == {None: 0.25, 2: 0.75}
    assert KEPT.weights(3) == pytest.approx({None: 0.25, 0: 0.25, 1: 0.25, 2: 0.25})
    assert Arm(keep="accumulate", human=0.5).weights(2) == {None: 0.5, 0: 0.25, 1: 0.25}
    with pytest.raises(UserError, match=r"Arm.human is 1.5"):
        Arm(keep="replace", human=1.5)


def test_a_study_stopped_in_the_middle_comes_to_the_same(text, whole, tmp_path):
    asked = iter(range(10**6))
    with pytest.raises(Stopped):
        list(opened(study_of(text, ALONE), tmp_path, lambda: next(asked) == 25).rows())
    assert not (tmp_path / "seed-0/replace-0/generation-1/measured.json").exists()
    rows = list(opened(study_of(text, ALONE), tmp_path).rows())
    assert rows == whole[1] and [(row.arm, row.generation) for row in rows] == [(None, 0), ("replace-0", 1)]


def test_a_generation_reads_what_the_one_before_wrote_and_all_of_it_is_accounted_for(text, whole):
    study = opened(study_of(text, ALONE), whole[0])
    folders = {number: whole[0] / f"seed-0/generation-{number}" for number in (0, 1)}
    run = study.run_of(ALONE, 0, 1, folders)
    assert json.loads((whole[0] / "seed-0/replace-0/generation-1/run/run.json").read_text()) == run.to_json()
    parts = study.run_of(KEPT, 0, 2, folders).data.corpus.ingredients
    assert [one.name for one in parts] == ["human", "generation-0", "generation-1"]
    rows = [row for path in sorted((folders[0] / "shards").glob("*.zst")) for row in read_shard(path)]
    first = whole[1][0].measured
    texts = [
        raw.decode()
        for raw in open_source(study.run_of(ALONE, 0, 1, folders).data.corpus.ingredients[1].corpus).documents(Report())
    ]
    assert texts == [row["text"] for row in rows], "and nothing beside it"
    assert sum(row["tokens"] for row in rows) >= study.reference.tokens
    assert first.documents == len(rows) + sum(first.dropped.values())


def test_what_is_done_is_shown_and_no_other_study_goes_in(text, whole):
    out, _ = whole
    found = open_collapse(study_of(text, ALONE), out)
    page = (out / PAGE).read_text()
    assert [len(arm["generations"]) for arm in found["arms"]] == [2] and "replace-0" in told_of(found)
    assert all(line in page for line in sentences(found)[1:])
    with pytest.raises(UserError, match="choose another folder"):
        opened(study_of(text, ALONE, passage=29), out)


def test_a_model_that_writes_no_text_is_told_of(text, tmp_path):
    spec = study_of(text, ALONE, top_p=1.0)
    short = replace(spec, run=replace(spec.run, train=replace(spec.run.train, tokens=64, schedule=WSD())))
    with pytest.raises(UserError, match=r"writes no document \(\d+ not UTF-8"):
        list(opened(replace(short, temperature=50.0), tmp_path).rows())


def measured(bpb: float, tail: float) -> Measured:
    return Measured(bpb, {}, {"1": tail, "2": 0.1}, {}, {}, 0.0, 1, {}, 0.0)


@pytest.mark.parametrize(
    ("later", "found"),
    [
        ([(2.1, 0.1), (2.15, 0.09)], None),
        ([(2.1, 0.1), (2.3, 0.1), (2.4, 0.1)], (2, "bpb")),
        ([(2.3, 0.1), (2.1, 0.1), (2.3, 0.1)], (3, "bpb")),
        ([(2.1, 0.04), (2.3, 0.04)], (1, "tail")),
        ([(2.3, 0.1), (2.1, 0.1)], None),
    ],
)
def test_collapse_is_from_a_generation_on_to_the_last(later, found):
    rows = [Row(None, 0, 0, measured(2.0, 0.1)), Row(None, 1, 0, measured(9.0, 0.1))]
    rows += [Row("a", 0, number, measured(*one)) for number, one in enumerate(later, start=1)]
    rows += [Row("b", 0, 1, measured(9.0, 0.0)), Row("a", 1, 1, measured(9.0, 0.1))]
    assert collapses(rows, "a", 0, Criterion()) == found
    assert collapses(rows, "a", 1, Criterion()) is None


def test_what_is_written_is_the_models_law(whole, tmp_path):
    """The log-probabilities kept beside documents are those of the model, so that their mean is its entropy."""
    run = whole[0] / "seed-0/generation-0/run"
    shards = written(run, tmp_path, Writing(50, 1.0, 1.0, "salt"), lambda done: None, lambda: False)
    held, compared = loaded(run), 0
    for row in read_shard(shards[0].path):
        ids = [0, *held.tokenizer.encode(row["text"]).ids, *([0] if row["ended"] == "stop" else [])]
        if len(ids) - 1 == row["tokens"]:  # else it was written as other tokens than its text is read as
            logp = torch.log_softmax(held.model(torch.tensor([ids[:-1]])), -1)[0]
            assert row["nats"] == pytest.approx(-logp[range(len(ids) - 1), ids[1:]].sum().item(), rel=1e-3)
            compared += 1
    assert compared
