"""Forecasts: the choice of shape, the seal, the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nachim.budget.shape import shape
from nachim.lab.forecast import choose_shape, forecast, open_seal, seal
from nachim.lab.recipe import Recipe
from nachim.lab.store import run_noise
from nachim.lab.verdict import judge
from nachim.law import Observations, Study, study
from nachim.spec import BPE, Data, Run, UserError

RECIPE = Recipe(data=Data(tokenizer=BPE(vocab_size=512), seq_len=128), precision="fp32")


def surface(m: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return 0.9 + 60 * m**-0.35 + 300 * tokens**-0.4


LADDER = (RECIPE.run(shape(16, 512), 1e11, 5e6), RECIPE.run(shape(80, 512), 1e12, 5e5))


@pytest.fixture(scope="module")
def reading() -> Study:
    m, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e5, 2e6, 6), np.geomspace(5e5, 8e6, 5)))
    noise = np.random.default_rng(0).normal(0, 0.003, m.size)
    return study(Observations(tokens=tokens, flops_per_token=m, loss=surface(m, tokens) * np.exp(noise)))


@pytest.fixture
def sealed(reading: Study, tmp_path: Path) -> tuple[dict, Path]:
    table = tmp_path / "observations.csv"
    table.write_text("tokens,loss\n")
    run = RECIPE.run(shape(64, 512), 1e13, 6e6)
    return seal(forecast(reading, run), reading, table, tmp_path / "forecast.json", tmp_path / "target"), tmp_path


def test_chosen_shape_is_the_best_of_the_family(reading: Study) -> None:
    model = choose_shape(reading, RECIPE.data, LADDER, 1e13, 10**9)
    m = np.array([shape(w, 512).flops_per_token(128) for w in (*range(32, 64, 8), *range(64, 129, 16))], float)
    m = m[(m <= 2 * LADDER[1].flops_per_token) & (1e13 / m <= 2 * LADDER[0].train.tokens)]
    chosen = float(model.flops_per_token(128))
    assert surface(np.array(chosen), np.array(1e13 / chosen)) < 1.003 * surface(m, 1e13 / m).min()


def test_chosen_shape_stays_within_one_epoch(reading: Study) -> None:
    model = choose_shape(reading, RECIPE.data, LADDER, 1e13, 4_000_000)
    assert 1e13 / model.flops_per_token(128) <= 4_000_000
    with pytest.raises(UserError, match="within 1,000,000 tokens"):
        choose_shape(reading, RECIPE.data, LADDER, 1e13, 1_000_000)


def test_chosen_shape_takes_at_most_twice_the_tokens_of_the_longest_run(reading: Study) -> None:
    short = RECIPE.run(shape(16, 512), 1e11, 2e6)
    model = choose_shape(reading, RECIPE.data, (short, LADDER[1]), 1e13, 10**9)
    assert 1e13 / model.flops_per_token(128) <= 2 * short.train.tokens


def test_forecast_holds_the_true_loss(reading: Study) -> None:
    run = RECIPE.run(shape(64, 512), 1e13, 6e6)
    found = forecast(reading, run)
    truth = float(surface(np.array(run.flops_per_token), np.array(run.train.tokens)))
    assert found.low < found.bpb < found.high
    assert found.bpb == pytest.approx(truth, rel=0.01)


def test_seal_opens_and_carries_the_whole_run(sealed: tuple[dict, Path]) -> None:
    fields, root = sealed
    assert open_seal(root / "forecast.json") == fields
    run = Run.from_json(fields["run"])
    assert run.fingerprint == fields["run_fingerprint"] and run.flops == fields["flops"]


@pytest.mark.parametrize("field", ["bpb", "low", "sealed_at", "law"])
def test_changed_seal_is_refused(sealed: tuple[dict, Path], field: str) -> None:
    fields, root = sealed
    (root / "forecast.json").write_text(json.dumps({**fields, field: "1.0"}))
    with pytest.raises(UserError, match="changed after it was sealed"):
        open_seal(root / "forecast.json")


def test_missing_seal_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sealed forecast"):
        open_seal(tmp_path / "forecast.json")


def test_no_seal_for_a_run_that_has_begun(reading: Study, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    prediction = forecast(reading, RECIPE.run(shape(64, 512), 1e13, 6e6))
    with pytest.raises(UserError, match="sealed before its run"):
        seal(prediction, reading, tmp_path / "o.csv", tmp_path / "forecast.json", tmp_path / "target")
    assert not (tmp_path / "forecast.json").exists()


@pytest.mark.parametrize(("measured", "inside"), [("bpb", True), ("low", True), ("beyond", False)])
def test_verdict(sealed: tuple[dict, Path], measured: str, inside: bool) -> None:
    fields, root = sealed
    bpb = fields["high"] * 1.01 if measured == "beyond" else fields[measured]
    result = {"fingerprint": fields["run_fingerprint"], "validation": {"bpb": bpb}}
    verdict = judge(fields, result, root / "verdict.json")
    assert verdict["inside"] is inside
    assert verdict["error_percent"] == pytest.approx(100 * (bpb - fields["bpb"]) / fields["bpb"])
    assert json.loads((root / "verdict.json").read_text()) == verdict


def test_verdict_on_another_run_is_refused(sealed: tuple[dict, Path]) -> None:
    fields, root = sealed
    with pytest.raises(UserError, match="not of the run"):
        judge(fields, {"fingerprint": "x", "validation": {"bpb": 1.0}}, root / "verdict.json")


def test_run_noise_is_the_pooled_deviation_of_equal_runs() -> None:
    rng = np.random.default_rng(1)
    tokens = np.repeat(np.geomspace(1e6, 1e7, 400), 2)
    loss = 2 * tokens**-0.05 * np.exp(rng.normal(0, 0.02, tokens.size))
    fields = {"tokens": tokens, "loss": loss, "flops_per_token": np.full(tokens.size, 1e5)}
    group, seed = np.full(tokens.size, "2x32"), np.tile([0.0, 1.0], 400)
    assert run_noise(Observations(**fields, group=group, seed=seed)) == pytest.approx(0.02, rel=0.15)
    assert run_noise(Observations(**fields, group=np.arange(tokens.size).astype(str), seed=seed)) is None
