"""A trained model goes on with another text: weights held, old text mixed in, both measured, a kill without effect."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from transformers import LlamaConfig

import nachim
from nachim.app import fisher as verb
from nachim.app.export import export
from nachim.app.fisher import fisher
from nachim.app.import_ import import_
from nachim.lab.work import Place, carry_out
from nachim.model.weights import fingerprint, latest
from nachim.spec import EWC, Data, Files, Ingredient, Mixture, Part, Run, Start, TokenizerFile, UserError
from nachim.train.ewc import open_penalty
from tests.app.exported import checkpoint, trained
from tests.model.hf.parity import SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def cached(run, monkeypatch) -> None:
    monkeypatch.setattr(verb, "CACHE", run.parent / "cache")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Files:
    """Another text."""
    folder = tmp_path_factory.mktemp("other")
    for number in range(80):
        (folder / f"{number}.txt").write_text(f"{number} " + "do re mi fa sol la si " * (8 + number % 5))
    return Files(path=str(folder), validation_bytes=1000, near_duplicates=True)


def recipe(run: Path, other: Files, old: float, **fields: object) -> Run:
    """A few steps from the weights in `run`, on another text with a share of the old."""
    before = Run.load(run / "run.json")
    parts = (
        Ingredient(name="old", corpus=before.data.corpus, weight=old),
        Ingredient(name="new", corpus=other, weight=1 - old),
    )
    data = replace(before.data, corpus=Mixture(ingredients=parts))
    train = replace(before.train, tokens=8 * 64)
    return replace(before, data=data, train=train, start=Start(folder=str(run)), **fields)


def carried_out(one: Run, run: Path, out: Path, stop: int | None = None) -> dict:
    """Train it, or stop as if killed after so many steps."""

    def on_step(_: Run, step: int, loss: float) -> None:
        if step == stop:
            raise KeyboardInterrupt

    return carry_out(one, out, Place(cache=run.parent / "cache", checkpoint_seconds=0.0), on_step)


def penalty_of(ewc: EWC, folder: Path) -> float:
    """The penalty on the weights of a run."""
    model = nachim.load(folder)
    return open_penalty(ewc, model, "cpu").pull(dict(model.named_parameters()))


@pytest.mark.usefixtures("cached")
def test_information_is_written_with_where_it_came_from(run, tmp_path, capsys):
    fisher(run, tmp_path / "f", sequences=5, json=True)
    said = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "f" / "fisher.json").read_text())
    model, tensors = nachim.load(run), load_file(tmp_path / "f" / "fisher.safetensors")
    assert said["fingerprint"] == kept["fingerprint"]
    assert kept["run_weights"] == fingerprint(run)
    assert Data.from_json(kept["data"]) == Run.load(run / "run.json").data
    assert (kept["sequences"], kept["tokens"]) == (5, 80)
    assert kept["weights"] == model.spec.params_total
    for name, weight in model.named_parameters():
        assert tensors[f"weights.{name}"].equal(weight)
        assert tensors[f"fisher.{name}"].min() >= 0
    assert kept["trace"] == pytest.approx(sum(float(tensors[name].sum()) for name in tensors if "fisher." in name))


@pytest.mark.usefixtures("cached")
def test_what_it_says_holds_a_run_that_a_kill_does_not_change(run, other, tmp_path, capsys):
    fisher(run, tmp_path / "f", sequences=20)
    said = capsys.readouterr().out.splitlines()[-1].removeprefix("hold them with: ")
    held = eval(said.removeprefix("ewc="), {"EWC": EWC})
    carried_out(recipe(run, other, 0.25), run, tmp_path / "free")
    one = recipe(run, other, 0.25, ewc=replace(held, strength=300.0))
    result = carried_out(one, run, tmp_path / "whole")
    assert penalty_of(held, run) == 0
    assert penalty_of(held, tmp_path / "whole") < 0.5 * penalty_of(held, tmp_path / "free")
    for stop in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            carried_out(one, run, tmp_path / "broken", stop)
    again = carried_out(one, run, tmp_path / "broken")
    whole, broken = (latest(tmp_path / name / "checkpoint") / "weights.safetensors" for name in ("whole", "broken"))
    assert whole.read_bytes() == broken.read_bytes()
    assert again["validation"] == result["validation"]


def test_each_text_of_a_mixture_is_measured_and_counted(run, other, tmp_path):
    result = carried_out(recipe(run, other, 0.25), run, tmp_path / "on")
    row = pq.read_table(tmp_path / "on" / "metrics.parquet").to_pylist()[-1]
    apart = result["validation"]["sources"]
    assert set(apart) == {"old", "new"}
    for name, found in apart.items():
        assert (row[f"validation_loss/{name}"], row[f"bpb/{name}"]) == (found["loss"], found["bpb"])
    assert result["validation"]["loss"] == pytest.approx(0.25 * apart["old"]["loss"] + 0.75 * apart["new"]["loss"])
    assert min(one["bpb"] for one in apart.values()) < result["validation"]["bpb"]
    assert result["validation"]["bpb"] < max(one["bpb"] for one in apart.values())
    counted = json.loads((tmp_path / "on" / "mixture.json").read_text())
    assert {name: one["tokens"] for name, one in counted.items()} == {"old": 128, "new": 384}


def test_an_imported_model_goes_on_in_its_own_tokenizer(run, other, tmp_path, capsys):
    theirs = checkpoint(tmp_path / "theirs", LlamaConfig(**SMALL | {"vocab_size": 300}))
    import_(str(theirs), tmp_path / "imported", json=True)
    folder = tmp_path / "imported"
    before = recipe(run, other, 0.0)
    one = replace(before, model=Part.load(folder / "run.json"), start=Start(folder=str(folder)))
    with pytest.raises(UserError, match="another tokenizer than the run's: give Data tokenizer=TokenizerFile") as told:
        carried_out(one, run, tmp_path / "wrong")
    file = eval(str(told.value).partition("tokenizer=")[2], {"TokenizerFile": TokenizerFile})
    one = replace(one, data=replace(before.data, corpus=other, tokenizer=file))
    result = carried_out(one, run, tmp_path / "on")
    assert (tmp_path / "on" / "tokenizer.json").read_bytes() == (theirs / "tokenizer.json").read_bytes()
    assert result["validation"]["bpb"] > 0
    export(tmp_path / "on", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 0


def test_bad_input_writes_nothing(run, tmp_path, capsys):
    import_(str(checkpoint(tmp_path / "theirs")), tmp_path / "imported", json=True)
    for folder, count, said in (
        (run, 0, "--sequences is 0"),
        (tmp_path / "imported", 5, "does not know its text: name a recipe .* with --on"),
        (tmp_path / "nowhere", 5, "no such file"),
    ):
        with pytest.raises(UserError, match=said):
            fisher(folder, tmp_path / "out", sequences=count)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is there already"):
        fisher(run, tmp_path / "theirs")
