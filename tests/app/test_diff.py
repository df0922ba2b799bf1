"""`nachim diff`: what is the same is found the same, and every change is found where it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from nachim.app.diff import diff
from nachim.spec import AdamW8, Muon, ScheduleFreeAdamW, UserError
from tests.train.tiny import ALWAYS, go, tiny_run

STEPS = 4
KEPT = frozenset({2, 3})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with the checkpoints of three steps."""
    out = tmp_path_factory.mktemp("run")
    go(tiny_run(STEPS, optimizer=Muon(lr=0.01), times=2), out, checkpoint_seconds=ALWAYS, keep=KEPT)
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def said(one: Path, other: Path, capsys) -> tuple[int, dict]:
    """The exit status and what --json prints."""
    status = diff(one, other, json=True)
    return status, json.loads(capsys.readouterr().out)


def folder(out: Path, step: int) -> Path:
    """That of a checkpoint."""
    return out / "checkpoint" / f"step-{step:09d}"


def changed(out: Path, step: int, name: str, index: tuple[int, ...], value: float) -> None:
    """Write another value into a weight of a checkpoint."""
    path = folder(out, step) / "weights.safetensors"
    weights = load_file(path)
    weights[name][index] = value
    save_file(weights, path)


@pytest.mark.parametrize("optimizer", [AdamW8(lr=0.01), ScheduleFreeAdamW(lr=0.01)])
def test_the_same_run_again_is_identical_and_a_longer_look_shows_what_was_compared(optimizer, tmp_path, capsys) -> None:
    for name in ("one", "other"):
        go(tiny_run(3, optimizer=optimizer, d_model=128), tmp_path / name, checkpoint_seconds=ALWAYS, keep=KEPT)
    status, found = said(tmp_path / "one", tmp_path / "other", capsys)
    assert (status, found["identical"], found["first"]) == (0, True, None)
    assert (found["steps"], found["checkpoints_compared"]) == ([3, 3], [2, 3])
    assert diff(tmp_path / "one", tmp_path / "other") == 0
    assert capsys.readouterr().out.splitlines() == [
        "metrics: the same at every step (to 3)",
        "checkpoints compared, after steps: 2, 3; the same to the bit",
        "identical",
    ]


def test_another_seed_is_named_with_the_first_step_and_the_first_tensor(run, tmp_path, capsys) -> None:
    go(tiny_run(STEPS, optimizer=Muon(lr=0.01), times=2, seed=1), tmp_path, checkpoint_seconds=ALWAYS, keep=KEPT)
    status, found = said(run, tmp_path, capsys)
    assert (status, found["identical"]) == (1, False)
    assert found["recipe"] == [{"what": "recipe", "name": "train.seed", "one": 0, "other": 1}]
    # The head starts at zero, so that the first loss is a blind guess's whatever the seed.
    assert found["first"] == found["metrics"] and (found["first"]["step"], found["first"]["name"]) == (1, "grad_norm")
    assert (found["checkpoint"]["step"], found["checkpoint"]["name"]) == (2, "blocks.0.attention.k_norm.weight")
    assert diff(run, tmp_path) == 1
    said_plainly = capsys.readouterr().out
    assert "recipe: train.seed: 0 -> 1\nmetrics first differ at step 1: grad_norm is " in said_plainly


def test_one_bit_of_one_weight_is_found(run, copy, capsys) -> None:
    name = "blocks.1.ffn.down.weight"
    before = load_file(folder(run, 3) / "weights.safetensors")[name]
    changed(copy, 3, name, (2, 5), before[2, 5].item() + 0.5)
    status, found = said(run, copy, capsys)
    assert (status, found["metrics"]) == (1, None)
    assert (found["first"]["what"], found["first"]["step"], found["first"]["name"]) == ("checkpoint", 3, name)
    assert found["first"]["largest"] == pytest.approx(0.5)
    assert found["first"]["share"] == 1 / before.numel()


@pytest.mark.parametrize(("values", "largest"), [((0.0, -0.0), 0.0), ((0.0, float("inf")), None)])
def test_bits_count_where_numbers_are_equal_or_not_finite(values, largest, run, copy, tmp_path, capsys) -> None:
    twin = Path(shutil.copytree(run, tmp_path / "twin"))
    for out, value in zip((copy, twin), values, strict=True):
        changed(out, 2, "norm.weight", (0,), value)
    status, found = said(copy, twin, capsys)
    assert (status, found["first"]["name"], found["first"]["largest"]) == (1, "norm.weight", largest)
    changed(twin, 2, "norm.weight", (0,), values[0])
    assert said(copy, twin, capsys)[0] == 0


def test_the_optimizers_state_is_compared_and_named_by_its_weight(run, copy, capsys) -> None:
    path = folder(copy, 4) / "state"
    kinds = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(kind.size) if hasattr(kind, "size") else None for name, kind in kinds.items()}
    dcp.load(tensors, checkpoint_id=path, no_dist=True)
    tensors["optimizer.muon.state.0.momentum"] += 1
    shutil.rmtree(path)
    dcp.save(tensors, checkpoint_id=path, no_dist=True)
    status, found = said(run, copy, capsys)
    assert (status, found["first"]["step"]) == (1, 4)
    assert found["first"]["name"] == "muon momentum of blocks.0.attention.qkv.weight"
    assert (found["first"]["largest"], found["first"]["share"]) == (pytest.approx(1), 1.0)


def test_the_first_step_whose_metrics_differ_is_named_and_the_clock_is_not_looked_at(run, copy, capsys) -> None:
    table = pq.read_table(copy / "metrics.parquet").to_pylist()
    for row in table:
        row["seconds"] *= 2
    table[2]["grad_norm"] += 0.25
    pq.write_table(pa.Table.from_pylist(table), copy / "metrics.parquet")
    status, found = said(run, copy, capsys)
    assert (status, found["checkpoint"]) == (1, None)
    assert (found["first"]["step"], found["first"]["name"]) == (3, "grad_norm")
    assert found["first"]["largest"] == pytest.approx(0.25)
    pq.write_table(pa.Table.from_pylist(table[:2]), copy / "metrics.parquet")
    found = said(run, copy, capsys)[1]
    assert found["first"] | {"largest": None} == {
        "what": "metrics",
        "step": 3,
        "name": "step",
        "one": "taken",
        "other": "absent",
        "largest": None,
        "share": None,
    }


def test_bad_input_is_one_sentence(run, copy, tmp_path) -> None:
    with pytest.raises(UserError, match="nowhere holds no run"):
        diff(run, tmp_path / "nowhere")
    for step in (2, 3, 4):
        shutil.rmtree(folder(copy, step))
    with pytest.raises(UserError, match="share no checkpoint"):
        diff(run, copy)
    shutil.copytree(folder(run, 2), folder(copy, 2))
    (folder(copy, 2) / "state" / ".metadata").write_bytes(b"noise")
    with pytest.raises(UserError, match=r"step-000000002.state cannot be read"):
        diff(run, copy)
    (folder(copy, 2) / "weights.safetensors").write_bytes(b"noise")
    with pytest.raises(UserError, match=r"weights.safetensors cannot be read"):
        diff(run, copy)
    (copy / "metrics.parquet").write_bytes(b"noise")
    with pytest.raises(UserError, match=r"metrics.parquet cannot be read"):
        diff(run, copy)
    (copy / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json is not JSON"):
        diff(run, copy)
