"""`nachim convert`: a run folder with fewer key-value heads, from which another run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nachim
from nachim.app.convert import convert
from nachim.app.export import export
from nachim.lab.work import Place, carry_out
from nachim.model.load import decoder_of
from nachim.model.weights import fingerprint, latest
from nachim.spec import WSD, Decoder, Run, Start, UserError
from tests.app.exported import trained

TOKENS = torch.arange(24).reshape(2, 12)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def grouped(run) -> Path:
    out = run.parent / "grouped"
    convert(run, out, kv_heads=1)
    return out


def going_on(run: Path, grouped: Path, **start: str) -> Run:
    """A run of a few steps from the converted weights."""
    before = Run.load(run / "run.json")
    schedule = replace(before.train, tokens=4 * 64, schedule=WSD(decay=1.0))
    return replace(before, model=decoder_of(grouped), train=schedule, start=Start(**{"folder": str(grouped), **start}))


def carried_out(one: Run, run: Path, out: Path, stop: int | None = None) -> dict:
    """Train it, or stop as if killed after so many steps."""

    def on_step(_: Run, step: int, loss: float) -> None:
        if step == stop:
            raise KeyboardInterrupt

    return carry_out(one, out, Place(cache=run.parent / "cache", checkpoint_seconds=0.0), on_step)


def test_a_converted_run_opens_and_says_what_it_is(run, tmp_path, capsys):
    out = tmp_path / "out"
    convert(run, out, kv_heads=1, json=True)
    said = json.loads(capsys.readouterr().out)
    model = nachim.load(out)
    assert model.spec.attention.n_kv_heads == 1
    assert said["params_total"] == sum(weight.numel() for weight in model.parameters())
    assert said["cache_bytes_per_token"] == [2 * 2 * 2 * 8 * 2, 2 * 2 * 1 * 8 * 2]
    assert said["fingerprint"] == fingerprint(out)
    assert model(TOKENS).isfinite().all()
    assert (out / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    assert Decoder.load(out / "run.json") == model.spec
    export(out, tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["num_key_value_heads"] == 1


def test_training_goes_on_from_the_converted_weights(run, grouped, tmp_path):
    begun = going_on(run, grouped, fingerprint=fingerprint(grouped))
    result = carried_out(begun, run, tmp_path / "on")
    drawn = carried_out(replace(begun, start=None), run, tmp_path / "drawn")
    assert result["validation"]["loss"] < drawn["validation"]["loss"] - 0.1
    still = replace(begun, train=replace(begun.train, optimizer=replace(begun.train.optimizer, lr=1e-12)))
    carried_out(still, run, tmp_path / "still")
    with torch.no_grad():
        torch.testing.assert_close(nachim.load(tmp_path / "still")(TOKENS), nachim.load(grouped)(TOKENS))


def test_a_killed_run_goes_on_to_the_same_weights_without_its_start(run, tmp_path):
    convert(run, tmp_path / "grouped", kv_heads=1)
    begun = going_on(run, tmp_path / "grouped")
    carried_out(begun, run, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        carried_out(begun, run, tmp_path / "broken", stop=3)
    (tmp_path / "grouped").rename(tmp_path / "gone")
    carried_out(begun, run, tmp_path / "broken")
    one, other = (latest(tmp_path / name / "checkpoint") / "weights.safetensors" for name in ("whole", "broken"))
    assert one.read_bytes() == other.read_bytes()


def test_a_start_that_does_not_fit_is_refused(run, grouped, tmp_path):
    begun = going_on(run, grouped, fingerprint="ab12")
    with pytest.raises(UserError, match=r"Start\.fingerprint is ab12, and the weights in .*grouped have [0-9a-f]{64}"):
        carried_out(begun, run, tmp_path / "other weights")
    begun = replace(going_on(run, grouped), model=Run.load(run / "run.json").model)
    with pytest.raises(UserError, match=r"holds another decoder than the run's \(attention.n_kv_heads: 2 -> 1\)"):
        carried_out(begun, run, tmp_path / "other decoder")
    begun = going_on(run, grouped, folder=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere has no weights"):
        carried_out(begun, run, tmp_path / "no folder")
    convert(run, tmp_path / "spoken", kv_heads=1)
    (tmp_path / "spoken" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="whose weights know another tokenizer"):
        carried_out(going_on(run, tmp_path / "spoken"), run, tmp_path / "other tokenizer")


def test_bad_input_writes_nothing(run, tmp_path):
    with pytest.raises(UserError, match="cannot be pooled into 3"):
        convert(run, tmp_path / "out", kv_heads=3)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is there already"):
        convert(run, run, kv_heads=1)
    with pytest.raises(UserError, match=r"no such file|no folder"):
        convert(tmp_path / "nowhere", tmp_path / "out", kv_heads=1)
