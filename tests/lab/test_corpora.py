"""Two corpora climb one ladder: the same shapes and budgets, one table."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from line import Silent
from tiny import tiny_data, write_corpus

from nachim.app.ask import Ask
from nachim.budget.shape import shape
from nachim.budget.throughput import Throughput
from nachim.data.prepare import prepare
from nachim.lab import ladder, size, study
from nachim.lab.corpora import climb_all, plan_all
from nachim.lab.sweep import sweep
from nachim.spec import Machine, UserError
from nachim.spec.disk import write_text

TOP = 1e9


def tiny_study(root: Path, name: str, documents: int) -> study.Study:
    """A study of a corpus of its own; machine and speed are given."""
    (root / name).mkdir(parents=True)
    write_corpus(root / name / "text", documents=documents, seed=documents)
    question = study.Question(minutes=0.1, data=tiny_data(root / name))
    made = study.Study(root / "study" / name, question, root / "cache", Silent(), time.monotonic())
    prepare(question.data, root / "cache")
    return made


def give_plan(asked: study.Study) -> None:
    """Its machine, its speed and a plan of 2 shapes and 2 budgets, as if measured."""
    machine = Machine(
        name="test", device="cpu", cores=1, fp32_one_thread=1e11, fp32_all=1e11, bf16_one_thread=1e9, bf16_all=1e9
    )
    write_text(asked.root / "machine.json", json.dumps(machine.to_json()))
    rate = Throughput(threads=1, flops=(1e5, 1e8), seconds=(1e-5, 1e-2))
    pace = {"alone": rate.to_json(), "beside": rate.to_json(), "workers": 1}
    write_text(asked.root / "pace.json", json.dumps(pace))
    shapes = tuple(shape(width, asked.question.data.tokenizer.vocab_size) for width in (32, 40))
    plan = size.Plan(
        design="isoflop",
        levels=tuple(ladder.budgets(TOP, count=2, span=4.0)),
        shapes=shapes,
        sweep=sweep(asked.recipe(), shapes[0], TOP / 4)[0],
        target_flops=2 * TOP,
        sweep_seconds=1.0,
        ladder_seconds=1.0,
        target_seconds=1.0,
        disk=1,
    )
    plan.save(asked.root / "plan.json")


def test_corpora_climb_one_ladder(tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "FEWEST_STEPS", 16)
    monkeypatch.setattr(study, "BATCH_FACTOR", 0.02)
    large, small = (tiny_study(tmp_path, name, documents) for name, documents in (("large", 400), ("small", 300)))
    give_plan(small)
    studies = {"large": large, "small": small}
    plan = plan_all(studies)
    assert (large.root / "plan.json").read_bytes() == (small.root / "plan.json").read_bytes()
    # A sweep is no part of what is tested here, and as long as the ladder: each study is given its end.
    for each in studies.values():
        each.recipe().save(each.root / "recipe.json")
    table = climb_all(studies, plan, tmp_path / "study" / "observations.csv")
    assert set(table.group.tolist()) == {"large", "small"}
    one, other = (table.subset(table.group == name) for name in studies)
    assert one.flops_per_token.tolist() == other.flops_per_token.tolist()
    assert one.flops.tolist() == other.flops.tolist()
    assert one.loss.tolist() != other.loss.tolist()
    assert (tmp_path / "study" / "observations.csv").exists()


def test_a_question_of_several_corpora_is_one_a_corpus():
    ask = Ask(data=("a/web", "hf:user/books"), minutes=30)
    each = ask.each()
    assert list(each) == ["web", "books"]
    assert each["books"].data == ("hf:user/books",)
    assert each["web"].minutes == 15
    assert each["web"].folder() == Path("runs/web-books-30min-trunks-s0/web")
    assert dataclasses.replace(ask, out=Path("here")).each()["web"].folder() == Path("here/web")
    with pytest.raises(UserError, match="only `nachim ladder` takes several"):
        ask.corpus()
    with pytest.raises(UserError, match="two corpora alike"):
        Ask(data=("a/web", "b/web")).each()
    with pytest.raises(UserError, match="no such file"):
        Ask(data=("/nowhere",)).corpus()


def test_what_is_wrong_with_one_corpus_of_several_says_which():
    def claim() -> None:
        pass

    def too_small() -> None:
        raise UserError("the corpus holds 6 bytes")

    def too_short() -> None:
        raise UserError("give it more --minutes")

    fine = SimpleNamespace(claim=claim, corpus=lambda: SimpleNamespace(unique_tokens=10), plan=too_short)
    with pytest.raises(UserError, match=r"^books: the corpus holds 6 bytes"):
        plan_all({"web": fine, "books": SimpleNamespace(claim=claim, corpus=too_small)})
    with pytest.raises(UserError, match=r"more --minutes \(2 corpora share them evenly\)"):
        plan_all({"web": fine, "books": fine})
