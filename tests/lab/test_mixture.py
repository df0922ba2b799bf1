"""Mixtures trained for real, tiny: designs, a study from corpora to verdict, weights found while a model trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from line import Silent
from safetensors.torch import load_file
from tiny import tiny_recipe, write_corpus

from nachim.budget.shape import shape
from nachim.lab.claim import claim
from nachim.lab.ladder import name_of
from nachim.lab.mixture import LEAST, Simplex, mixed, simplex, table_of
from nachim.lab.mixture_online import Online, OnlineStudy, reweighed
from nachim.lab.mixture_study import QUESTION, MixQuestion, MixStudy
from nachim.lab.work import Place, carry_out
from nachim.model.weights import latest
from nachim.spec import WSD, Constant, Files, Ingredient, Mixture, Run, UserError
from nachim.train.stopping import Stopped


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Place]:
    """A tiny run on two corpora, and where it goes."""
    root = tmp_path_factory.mktemp("mixtures")
    recipe = tiny_recipe(root)
    other = write_corpus(root / "other", documents=200, seed=5)
    for path in other.iterdir():
        path.write_text(path.read_text().replace("at", "owl").replace("e", "u"))
    parts = (
        Ingredient(name="cats", corpus=recipe.data.corpus, weight=3.0),
        Ingredient(
            name="owls", corpus=Files(path=str(other), validation_bytes=10_000, near_duplicates=True), weight=1.0
        ),
    )
    run = recipe.run(shape(16, 300), 1e9, 12 * recipe.batch_tokens(1e9))
    return replace(run, data=replace(run.data, corpus=Mixture(ingredients=parts))), Place(cache=root / "cache")


def weights(folder: Path) -> dict[str, bytes]:
    """The newest weights of a run, to the bit."""
    found = latest(folder / "checkpoint")
    return {name: value.numpy().tobytes() for name, value in load_file(found / "weights.safetensors").items()}


def test_a_design_is_spread_over_the_simplex_and_the_same_each_time():
    for corpora, count in ((2, 5), (3, 9), (6, 20)):
        found = np.array(simplex(corpora, count, seed=3))
        assert found.shape == (count, corpora)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
        assert found.min() >= LEAST - 1e-6
        assert len(np.unique(found.round(4), axis=0)) == count
        assert simplex(corpora, count, seed=3) == tuple(map(tuple, found.tolist()))
        assert np.abs(found.mean(axis=0) - 1 / corpora).max() < 0.12
    with pytest.raises(UserError, match="1 mixtures of 3 corpora: give two or more of each"):
        simplex(3, 1)


def test_runs_of_a_design_differ_in_their_weights_alone(made):
    run, _ = made
    design = Simplex(base=run, weights=((0.5, 0.5), (0.1, 0.9)), parts=(1, 2), seeds=(0, 4))
    chains = design.chains()
    assert [len(chain.runs) for chain in chains] == [2, 2, 2, 2]
    assert len({name_of(one) for one in design.runs}) == 8
    first, last = chains[0].runs[-1], chains[-1].runs[-1]
    assert last.train.seed == last.data.seed == 4
    assert first.train.tokens == run.train.tokens == 2 * chains[0].runs[0].train.tokens
    assert mixed(last, (0.5, 0.5), seed=0) == first
    constant = replace(run, train=replace(run.train, schedule=Constant()))
    assert [len(chain.runs) for chain in Simplex(base=constant, weights=((0.5, 0.5),)).chains()] == [1, 1]


def test_from_corpora_to_a_verdict_and_nothing_twice(made, tmp_path):
    run, place = made
    study = MixStudy(tmp_path / "study", MixQuestion(base=run, mixtures=4), place, 1, Silent())
    design = study.design()
    assert design.weights[0] == (0.75, 0.25) and len(design.weights) == 4
    for chain in design.chains():  # in this process: workers are tested with ladders
        for one in chain.runs:
            carry_out(one, study.root / "runs" / name_of(one), place, lambda *_: None)
    claim(study.root / QUESTION, study.question)
    runs = study.climb()
    assert runs.corpora == ("cats", "owls") and set(runs.texts) == {"cats", "owls"} and len(runs) == 8
    sealed = study.forecast()
    assert sealed == study.forecast()
    assert sum(sealed["chosen"].values()) == pytest.approx(1)
    assert [row["name"] for row in sealed["runs"]] == ["chosen", "chosen", "base"]
    for chain in study.ahead(np.array(list(sealed["chosen"].values()))).values():
        for one in chain.runs:
            carry_out(one, study.root / "ahead" / name_of(one), place, lambda *_: None)
    before = {path: path.stat().st_mtime_ns for path in study.root.rglob("result.json")}
    verdict = study.run()
    assert {path: path.stat().st_mtime_ns for path in study.root.rglob("result.json")} == before
    for row, one in zip(verdict["runs"], sealed["runs"], strict=True):
        measured = table_of(study.root / "ahead", [Run.from_json(one["run"])])
        assert row["measured"] == pytest.approx(measured.losses.mean())
        assert row["inside"] == (one["loss"][1] <= row["measured"] <= one["loss"][2])
        for name, losses in zip(measured.texts, measured.losses[0], strict=True):
            assert row["texts"][name]["measured"] == losses
    assert verdict["better"] == (verdict["runs"][1]["measured"] < verdict["runs"][2]["measured"])
    (study.root / "forecast.json").unlink()
    with pytest.raises(UserError, match="has begun: a forecast comes before its runs"):
        study.forecast()
    with pytest.raises(UserError, match="holds another study"):
        replace(study, question=replace(study.question, mixtures=6)).run()


def test_weights_follow_the_excess_as_the_paper_says():
    before, excess = np.array([0.2, 0.5, 0.3]), np.array([0.4, -1.0, 0.1])
    moved = before * np.exp(2.0 * np.array([0.4, 0.0, 0.1]))
    expected = 0.99 * moved / moved.sum() + 0.01 / 3
    np.testing.assert_allclose(reweighed(before, excess, 2.0, 0.01), expected)
    assert np.isfinite(reweighed(before, np.array([900.0, 0.0, 0.0]), 1.0, 0.0)).all()


@pytest.fixture(scope="module")
def searched(made, tmp_path_factory) -> tuple[OnlineStudy, dict]:
    """A search in three stretches, and what it found."""
    run, place = made
    study = OnlineStudy(
        tmp_path_factory.mktemp("search"), Online(base=run, stretches=3, probe_tokens=512), place, Silent()
    )
    return study, study.run()


def test_a_search_is_one_run_that_anybody_can_train_again(searched, tmp_path):
    study, found = searched
    steps = [one["weights"] for one in found["stretches"]]
    assert steps[0] == {"cats": 0.5, "owls": 0.5} and steps[1] != steps[0]
    for here, after in zip(found["stretches"], steps[1:], strict=False):
        excess = np.array(list(here["excess"].values()))
        expected = reweighed(np.array(list(here["weights"].values())), excess, 1.0, 1e-3)
        np.testing.assert_allclose(list(after.values()), expected)
        assert here["excess"] == {name: here["loss"][name] - found["reference"][name] for name in steps[0]}
    assert sum(found["weights"].values()) == pytest.approx(1)
    last = Run.load(study.root / "proxy" / "003" / "run.json")
    assert [one.at_tokens for one in last.data.corpus.changes] == [study.question.token(n) for n in (1, 2)]
    carry_out(last, tmp_path / "alone", study.place, lambda *_: None)
    assert weights(tmp_path / "alone") == weights(study.root / "proxy" / "003")


def test_a_stopped_search_goes_on_to_the_same_weights(searched, tmp_path):
    study, whole = searched
    asked = 0

    class Impatient(Silent):
        def event(self, event: object) -> None:
            nonlocal asked
            asked += 1
            if asked % 9 == 0:
                raise Stopped(None)

        def stopping(self) -> bool:
            return False

    broken = replace(study, root=tmp_path, place=replace(study.place, checkpoint_seconds=0.0), view=Impatient())
    for _ in range(20):
        try:
            found = broken.run()
            break
        except Stopped:
            continue
    assert asked > 24 and found == whole
    assert json.loads((tmp_path / "weights.json").read_text()) == whole
    with pytest.raises(UserError, match="holds another search"):
        replace(broken, question=replace(study.question, rate=2.0)).run()


def test_what_makes_no_sense_is_refused(made):
    run, _ = made
    alone = replace(run, data=replace(run.data, corpus=run.data.corpus.ingredients[0].corpus))
    for bad, why in (
        (lambda: MixQuestion(base=alone), "MixQuestion.base reads one corpus"),
        (lambda: MixQuestion(base=run, mixtures=3), "MixQuestion.mixtures is 3; the law of these needs 4"),
        (lambda: MixQuestion(base=run, target=(1.0,)), "target has 1 weights; it needs 2"),
        (lambda: Online(base=alone), "Online.base reads one corpus"),
        (lambda: Online(base=run, stretches=1), "Online.stretches is 1"),
        (lambda: Online(base=run, smoothing=1.0), "smoothing is 1.0"),
        (lambda: Online(base=run, stretches=12), "stretches is 12: one is shorter than the warm-up of"),
        (lambda: Simplex(base=alone, weights=((0.5, 0.5),)), "Simplex.base reads one corpus"),
        (lambda: mixed(alone, (0.5, 0.5)), "the run reads one corpus"),
    ):
        with pytest.raises(UserError, match=why):
            bad()
    assert isinstance(Online(base=run, stretches=3).reference.train.schedule, Constant) and isinstance(
        run.train.schedule, WSD
    )
