"""A run with experts: its biases are part of its state, and every step tells how uneven their loads were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import nachim
from nachim.spec import WSD, MoE, Run, UserError
from nachim.train import checkpoint
from nachim.train.guard import Guard
from nachim.train.schedule import stable_steps
from nachim.train.step import Stepper
from tests.train.tiny import ALWAYS, BATCH, LENGTH, Kill, differing, fresh, go, kill_at, loss, rows, tiny_run, weights

EXPERTS = MoE(d_ff=8, experts=4, active=2, bias_step=0.01, balance_loss=0.01, z_loss=0.001)
BIASES = [f"blocks.{layer}.ffn.router.selection_bias" for layer in range(2)]


def sparse_run(steps: int = 6, ffn: MoE = EXPERTS, **fields: object) -> Run:
    """The tiny run with experts."""
    run = tiny_run(steps, **fields)
    return replace(run, model=replace(run.model, ffn=ffn))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_ends_with_the_same_bits_biases_among_them(precision, tmp_path):
    run = sparse_run(4, precision=precision, micro_batch_tokens=BATCH // 2, times=2)
    with pytest.raises(Kill):
        go(run, tmp_path / "killed", checkpoint_seconds=ALWAYS, on_step=kill_at(3))
    go(run, tmp_path / "killed")
    go(run, tmp_path / "whole")
    ended = weights(tmp_path / "whole")
    assert not differing(weights(tmp_path / "killed"), ended)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    for name in BIASES:
        assert ended[name].dtype == torch.float32
        assert ended[name].abs().max() > 0
        torch.testing.assert_close(ended[name] / 0.01, (ended[name] / 0.01).round())


def test_a_longer_run_takes_the_biases_of_the_one_it_starts_from(tmp_path):
    short, long = (sparse_run(steps, schedule=WSD(warmup_tokens=2 * BATCH, decay=0.25)) for steps in (4, 6))
    shared = stable_steps(short.train)
    go(short, tmp_path / "short", keep=frozenset({shared}))
    start = checkpoint.path_at(tmp_path / "short" / "checkpoint", shared)
    go(long, tmp_path / "from", start=start)
    go(long, tmp_path / "scratch")
    assert not differing(weights(tmp_path / "from"), weights(tmp_path / "scratch"))
    assert rows(tmp_path / "from") == rows(tmp_path / "scratch")[shared:]


def test_a_checkpoint_without_biases_is_refused(tmp_path):
    plain = sparse_run(ffn=replace(EXPERTS, bias_step=None))
    without = Stepper(plain, fresh(plain), loss)
    without.take(0, torch.arange(4 * (LENGTH + 1)).view(4, -1) % 257, Guard(1.0))
    folder = checkpoint.save(tmp_path, without, checkpoint.Progress(1), frozenset())
    run = sparse_run()
    with pytest.raises(UserError, match=r"cannot resume from .*selection_bias"):
        checkpoint.load(folder, Stepper(run, fresh(run), loss))


def test_the_loads_of_micro_batches_add_up():
    found = []
    for micro in (None, LENGTH):
        run = sparse_run(micro_batch_tokens=micro, ffn=replace(EXPERTS, balance_loss=0.0))
        stepper = Stepper(run, fresh(run), loss)
        told = stepper.take(0, torch.arange(4 * (LENGTH + 1)).view(4, -1) % 257, Guard(1.0))
        found.append((told.imbalance, {name: stepper.masters.state()[name] for name in BIASES}))
    assert found[0][0] == found[1][0] > 1
    assert not differing(found[0][1], found[1][1])


def test_every_step_tells_its_imbalance_and_a_dense_run_has_none(tmp_path):
    go(sparse_run(4), tmp_path / "sparse")
    go(tiny_run(2), tmp_path / "dense")
    told = [row["imbalance"] for row in rows(tmp_path / "sparse")]
    assert len(told) == 4
    assert all(1 <= imbalance <= EXPERTS.experts / EXPERTS.active for imbalance in told)
    assert [row["imbalance"] for row in rows(tmp_path / "dense")] == [None] * 2


def test_metrics_written_before_there_was_an_imbalance_are_taken_up(tmp_path):
    run = tiny_run(3)
    with pytest.raises(Kill):
        go(run, tmp_path / "old", checkpoint_seconds=ALWAYS, on_step=kill_at(2))
    path = tmp_path / "old" / "metrics.parquet"
    pq.write_table(pq.read_table(path).drop_columns("imbalance"), path)
    go(run, tmp_path / "old")
    go(run, tmp_path / "whole")
    assert rows(tmp_path / "old") == rows(tmp_path / "whole")


def opened(folder: Path, dtype: str) -> dict[str, torch.Tensor]:
    """The state of the model that stands in `folder`."""
    return nachim.load(folder, dtype).state_dict()


def test_a_run_opens_with_its_biases_in_fp32(tmp_path):
    go(sparse_run(2), tmp_path)
    ended = weights(tmp_path)
    for dtype in ("float32", "bfloat16"):
        state = opened(tmp_path, dtype)
        assert state["blocks.0.ffn.router.weight"].dtype == getattr(torch, dtype)
        assert all(torch.equal(state[name], ended[name]) for name in BIASES)
