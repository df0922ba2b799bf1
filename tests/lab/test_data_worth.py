"""From data sets to what their difference is worth; training itself is stood in for by a law whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from line import Silent
from tiny import tiny_recipe, write_corpus

from nachim.budget.throughput import Throughput
from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline
from nachim.data.prepare import prepare
from nachim.data.shards import read_shard
from nachim.data.stage import Drop, PerRow
from nachim.lab import data_sides, data_worth, ladder
from nachim.lab.data_worth import Question, WorthStudy, targets
from nachim.lab.ladder import name_of
from nachim.lab.work import Place
from nachim.law import LAWS
from nachim.spec import BPE, Data, Files, Ingredient, Mixture, UserError
from nachim.spec.disk import write_text

TRUTH = {"E": 0.5, "A": 400.0, "B": 90.0, "alpha": 0.5, "beta": 0.5}
WORTH = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvenPages(PerRow):
    """Drops every page whose number is odd."""

    def one(self, row):
        return row if int(row["text"].split()[1]) % 2 == 0 else Drop("odd")


def sources(tmp_path):
    """A corpus as it lies, and half of it."""
    folder = write_corpus(tmp_path / "text", documents=260)
    raw = Pipeline(origins=(Origin(corpus=Files(path=str(folder))),))
    return {"raw": raw, "even": dataclasses.replace(raw, stages=(EvenPages(),))}


@pytest.fixture
def small(monkeypatch):
    """Ladders of a few steps, at a speed that is given; trained by a law by which `even` is worth 1.5."""
    monkeypatch.setattr(data_sides, "LEAST", 2000)
    monkeypatch.setattr(ladder, "FEWEST_STEPS", 256)
    monkeypatch.setattr(data_worth, "FEWEST_STEPS", 256)
    monkeypatch.setattr(data_worth, "SMALLEST_TOP", 1e10)
    monkeypatch.setattr(data_worth, "BATCH_FACTOR", 0.02)
    monkeypatch.setattr(data_worth, "FINE", 1.2)
    rate = Throughput(threads=1, flops=(1e5, 1e8), seconds=(1e-5, 1e-2))
    monkeypatch.setattr(WorthStudy, "pace", lambda self, recipe: rate)
    trained = []

    def by_law(chains, root, place, workers, on_event, stopping):
        for run in (run for chain in chains for run in chain.runs):
            trained.append(run)
            m = WORTH if run.data.corpus.ingredients[1].corpus.path.endswith("even/shards") else 1.0
            m *= 1 + 0.01 * math.sin(run.train.tokens + 7 * run.train.seed + 100 * m)
            loss = LAWS["chinchilla"].predict(TRUTH, run.flops_per_token * m**0.5, run.train.tokens * m**0.5)
            held = {"held-out": {"loss": 0.0, "bpb": float(loss)}, "text": {"loss": 9.0, "bpb": 9.0}}
            result = {"fingerprint": run.fingerprint, "validation": {"bpb": 9.0, "loss": 9.0, "sources": held}}
            write_text(root / name_of(run) / "result.json", json.dumps(result))
            write_text(root / name_of(run) / "mixture.json", json.dumps({"text": {"tokens": 9, "epochs": 0.5}}))

    monkeypatch.setattr(data_worth, "carry_out_all", by_law)
    return trained


def study(tmp_path, found, **changes):
    fields = {"flops": 2.4e10, "share": 0.3, "vocab_size": 300, "seq_len": 32, **changes}
    question = Question(sources=found, **fields)
    return WorthStudy(tmp_path / "study", question, Place(tmp_path / "cache"), 1, Silent())


def test_a_known_worth_is_found_forecast_and_checked(tmp_path, small):
    asked = study(tmp_path, sources(tmp_path))
    found, verdict = asked.run()
    worth, idea = found["even"], verdict["ideas"]["even"]
    assert worth.pairs == len([run for run in small if run.flops < 0.9 * max(one.flops for one in small)]) / 2
    assert worth.low < WORTH < worth.high
    assert worth.high / worth.low < 1.2
    _, low, high = idea["sealed"]["ratio"]
    assert idea["sealed"]["multiplier"][0] == pytest.approx(WORTH, rel=0.1)
    assert idea["measured"]["multiplier"] == pytest.approx(WORTH, rel=0.1)
    assert idea["inside"] == (low <= idea["measured"]["ratio"] <= high)
    assert idea["together"]["multiplier"] == pytest.approx(WORTH, rel=0.1)
    assert verdict["epochs"] == {"raw": {"text": 0.5}, "even": {"text": 0.5}}
    # pairs differ in what they read alone
    plan = asked.plan({})
    recipes = asked.recipes(asked.sides())
    for one, other in zip(*(targets(asked.question, recipe, plan) for recipe in recipes.values()), strict=True):
        assert dataclasses.replace(one, data=other.data) == other
        assert one.data.corpus.ingredients[0] == other.data.corpus.ingredients[0]
        assert one.flops >= 3.9 * max(plan.levels)
    # and once done, nothing is trained again
    count = len(small)
    assert asked.run()[1] == verdict
    assert len(small) == count


def test_a_seal_comes_before_its_runs_and_is_kept(tmp_path, small):
    asked = study(tmp_path, sources(tmp_path))
    asked.run()
    sealed = tmp_path / "study" / "forecast.json"
    text = sealed.read_text()
    sealed.unlink()
    with pytest.raises(UserError, match="a forecast comes before its runs"):
        asked.run()
    sealed.write_text(text.replace('"tokens"', '"token"'))
    with pytest.raises(UserError, match="was changed after it was sealed"):
        asked.run()


def test_nothing_held_out_is_read_by_any_run(tmp_path, small):
    asked = study(tmp_path, sources(tmp_path))
    sides = asked.sides()
    texts = {}
    for name, folder in (("judge", "held-out/judge"), ("raw", "data/raw"), ("even", "data/even")):
        shards = sorted((tmp_path / "study" / folder / "shards").glob("*.zst"))
        texts[name] = {row["text"] for shard in shards for row in read_shard(shard)}
    assert 50 < len(texts["judge"]) < 110
    assert texts["even"] < texts["raw"]
    assert not texts["judge"] & texts["raw"]
    assert len(texts["judge"]) + len(texts["raw"]) == 260
    assert [stage["kept"]["rows"] for stage in sides.documents["even"]][-1] == len(texts["even"])
    yardsticks = [mixture.ingredients[0] for mixture in sides.mixtures.values()]
    assert yardsticks[0] == yardsticks[1] and yardsticks[0].weight == 0
    prepared = prepare(Data(corpus=yardsticks[0].corpus, tokenizer=BPE(vocab_size=300), seq_len=32), tmp_path / "cache")
    assert prepared.validation_bytes >= yardsticks[0].corpus.validation_bytes


def test_mixtures_are_judged_on_each_text_alike(tmp_path):
    parts = [(name, Files(path=str(write_corpus(tmp_path / name, 20, seed)))) for seed, name in enumerate("ab")]
    one, other = (
        Mixture(ingredients=tuple(Ingredient(name=n, corpus=c, weight=w) for (n, c), w in zip(parts, ws, strict=True)))
        for ws in ((1, 3), (1, 1))
    )
    sides = data_sides.make_sides({"one": one, "other": other}, 0.1, tmp_path, 1, lambda stage, done: None)
    assert (sides.mixtures, sides.judged) == ({"one": one, "other": other}, {"a": 0.5, "b": 0.5})
    apart = dataclasses.replace(other, ingredients=other.ingredients[:1])
    with pytest.raises(UserError, match="of other corpora"):
        data_sides.make_sides({"one": one, "other": apart}, 0.1, tmp_path, 1, lambda stage, done: None)
    with pytest.raises(UserError, match="raw is no mixture, as one is"):
        data_sides.make_sides({"one": one, "raw": parts[0][1]}, 0.1, tmp_path, 1, lambda stage, done: None)


def test_what_cannot_be_asked_is_one_sentence(tmp_path, small):
    both = sources(tmp_path)
    with pytest.raises(UserError, match="beside another"):
        study(tmp_path, {"raw": both["raw"]}).run()
    with pytest.raises(UserError, match="at least one seed"):
        study(tmp_path, both, seeds=0).run()
    with pytest.raises(UserError, match="come to the same text"):
        study(tmp_path, {"raw": both["raw"], "again": both["raw"]}).run()
    with pytest.raises(UserError, match="holds another question"):
        study(tmp_path, both).run()
    for wrong, changes in (
        ("give it more --minutes", {"flops": None, "minutes": 1e-4}),
        ("too few runs", {"flops": 1e7}),
    ):
        with pytest.raises(UserError, match=wrong):
            study(tmp_path / "short", both, **changes).plan({"raw": tiny_recipe(tmp_path)})


def test_the_largest_plan_that_fits_the_minutes_is_taken(tmp_path, small):
    asked, recipe = study(tmp_path, {"a": None, "b": None}, flops=None, minutes=12.0), tiny_recipe(tmp_path)
    rate = asked.pace(recipe)
    plan = data_worth.largest(asked.question, recipe, rate, 1)
    more = data_worth.lay_out(asked.question, recipe, plan.levels[-1] * 1.2, rate, 1)
    assert plan.seconds <= 720 < more.seconds
    assert len(plan.shapes) == 3
    assert data_worth.lay_out(asked.question, recipe, plan.levels[-1], rate, 2).seconds < 0.7 * plan.seconds


def test_too_little_to_judge_by_is_said(tmp_path):
    folder = write_corpus(tmp_path / "text", documents=40)
    with pytest.raises(UserError, match="hold out a larger share"):
        data_sides.make_sides({"a": Files(path=str(folder))}, 0.1, tmp_path / "out", 1, lambda stage, done: None)
