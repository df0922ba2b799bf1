"""A study of vocabularies, tiny: equal compute, one held-out text, and what was done is not done again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from line import Silent
from tiny import tiny_recipe

from nachim.budget.shape import shape
from nachim.lab import vocabulary
from nachim.lab.vocabulary import VocabularyQuestion, VocabularyStudy, judged
from nachim.lab.work import Place, carry_out_chain, open_batches
from nachim.law.blocks import Blocks
from nachim.law.observe import read
from nachim.spec import WSD, Ingredient, Mixture, TokenizerFile, UserError

SIZES = (280, 440)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A tiny question, and where its corpus is kept."""
    root = tmp_path_factory.mktemp("vocabulary")
    recipe = tiny_recipe(root)
    run = recipe.run(shape(16, 300), 1e9, 20 * recipe.batch_tokens(1e9))
    return VocabularyQuestion(base=run, sizes=SIZES, seeds=2, held_out_bytes=8_000), Place(root / "cache")


@pytest.fixture
def here(monkeypatch):
    """Runs are carried out in this process; how many were asked for."""
    asked = []

    def carry_out(chains, root, place, workers, on_event, stopping):
        for chain in chains:
            asked.append(chain)
            carry_out_chain(chain, root, place, lambda run, step, loss: None)

    monkeypatch.setattr(vocabulary, "carry_out_all", carry_out)
    return asked


def test_every_size_has_the_base_s_compute_to_half_a_step(asked):
    question, _ = asked
    warm = replace(question.base.train, schedule=WSD(warmup_tokens=question.base.train.tokens // 4))
    question = replace(question, base=replace(question.base, train=warm))
    for size in SIZES:
        run = question.run_of(size, 1)
        step = (run.flops_per_token + run.model.head_flops_per_token) * run.train.batch_tokens
        assert abs(run.flops + run.head_flops - question.flops) <= step / 2
        assert run.model.vocab_size == run.data.tokenizer.vocab_size == size
        assert run.train.schedule.warmup_tokens == pytest.approx(run.train.tokens / 4, abs=1)
        assert run.train.seed == question.base.train.seed + 1


def test_all_sizes_are_judged_on_the_same_text(asked):
    question, place = asked
    seen = []
    for size in SIZES:
        run = question.run_of(size, 0)
        batches = open_batches(run.data, place.cache)
        ids = batches.validation(run.validation.tokens)
        assert len(ids) == batches.validation_windows
        seen.append(batches.prepared.validation_bytes)
        assert batches.target_bytes(ids) == pytest.approx(seen[-1], rel=0.02)
    assert len(set(seen)) == 1 and seen[0] >= question.held_out_bytes * 0.8


def test_a_study_is_done_once_and_goes_on(asked, here, tmp_path):
    question, place = asked
    root = tmp_path / "study"
    first = VocabularyStudy(root, replace(question, seeds=1), place, 1, Silent()).run()
    assert len(here) == 2 and first["noise"] is None and first["alike"] == []
    found = VocabularyStudy(root, question, place, 1, Silent()).run()
    assert len(here) == 4
    assert [one["bpb"][:1] for one in found["sizes"]] == [one["bpb"] for one in first["sizes"]]
    assert (
        VocabularyStudy(root, question, place, 1, Silent()).run()
        == found
        == json.loads((root / "summary.json").read_text())
    )
    assert len(here) == 4
    table = read(root / "observations.csv")
    assert table.extra["vocab_size"].tolist() == [280, 280, 440, 440]
    assert table.extra["vocab_params"].tolist() == [16 * size for size in (280, 280, 440, 440)]
    assert np.allclose(table.loss.reshape(2, 2), [one["bpb"] for one in found["sizes"]])
    rising = [one["bytes_per_token"] for one in found["sizes"]]
    assert rising == sorted(rising)
    for one in found["sizes"]:
        model = question.run_of(one["vocab_size"], 0).model
        assert one["params_share"] == 2 * one["vocab_size"] * 16 / model.params_total
    with pytest.raises(UserError, match=r"holds another study .*held_out_bytes"):
        VocabularyStudy(root, replace(question, held_out_bytes=9_000), place, 1, Silent()).run()


def test_without_seeds_nothing_is_trained(asked, here, tmp_path):
    question, place = asked
    found = VocabularyStudy(tmp_path / "study", replace(question, seeds=0), place, 1, Silent()).run()
    assert not here and "best" not in found
    assert all(one["tokens"] > 0 and 1 < one["bytes_per_token"] < 8 for one in found["sizes"])


def test_a_judgement_by_hand():
    sizes = [{"vocab_size": size} for size in (300, 600, 1200)]
    found = judged(Blocks(np.array([[2.0, 2.0], [1.0, 1.0], [1.0001, 1.0002]])), sizes)
    assert (found["best"], found["alike"], found["optimum"]) == (600, [600, 1200], None)
    assert found["sizes"][0]["over_best"] == pytest.approx(1.0) and found["sizes"][0]["low"] > 0.9
    assert found["sizes"][0]["mean"] == pytest.approx(2.0)


def test_what_makes_no_sense_is_refused(asked):
    question, _ = asked
    data = question.base.data
    mixed = Mixture(ingredients=(Ingredient(name="a", corpus=data.corpus, weight=1.0),))
    with pytest.raises(UserError, match="reads a mixture"):
        replace(question, base=replace(question.base, data=replace(data, corpus=mixed)))
    with pytest.raises(UserError, match="reads a tokenizer of a file"):
        file = TokenizerFile(path="t.json", vocab_size=300)
        replace(question, base=replace(question.base, data=replace(data, tokenizer=file)))
    with pytest.raises(UserError, match="two or more, each once"):
        replace(question, sizes=(512, 512))
    with pytest.raises(UserError, match="so close"):
        replace(question, sizes=(300, 301))
    with pytest.raises(UserError, match="at least 257"):
        replace(question, sizes=(100, 300))
