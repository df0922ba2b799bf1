"""However often a run is killed, and wherever, it ends with the same bits."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch

from nachim.spec import WSD, Growth, UserError
from nachim.spec.disk import locked
from nachim.train import checkpoint, guard, loop
from nachim.train.schedule import factor, stable_steps
from tests.train import tiny
from tests.train.tiny import ALWAYS, BATCH, NEVER, Kill, differing, folders, go, kill_at, rows, tiny_run, weights

STEPS = 8


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def whole(request, tmp_path_factory):
    """A run that nobody interrupted: its spec, folder and result."""
    run = tiny_run(STEPS, precision=request.param, micro_batch_tokens=BATCH // 2, times=4)
    out = tmp_path_factory.mktemp(request.param)
    return run, out, go(run, out, checkpoint_seconds=NEVER)


def same(result: dict, other: dict) -> bool:
    """Whether two results agree in all that is not wall time."""
    return all(result[name] == other[name] for name in result if "second" not in name)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_run_killed_at_any_step_ends_with_the_same_bits(whole, step, tmp_path):
    run, uninterrupted, result = whole
    with pytest.raises(Kill):
        go(run, tmp_path, checkpoint_seconds=ALWAYS, on_step=kill_at(step))
    assert step == 1 or folders(tmp_path) == [f"step-{done:09d}" for done in range(max(1, step - 2), step)]
    again = go(run, tmp_path, checkpoint_seconds=NEVER)
    assert not differing(weights(tmp_path), weights(uninterrupted))
    assert rows(tmp_path) == rows(uninterrupted)
    assert same(again, result)


def test_a_run_killed_after_every_step_ends_with_the_same_bits(tmp_path):
    run = tiny_run(STEPS, schedule=WSD(warmup_tokens=2 * BATCH, decay=0.5), times=2)
    for _ in range(STEPS - 1):
        with pytest.raises(Kill):  # each sitting takes two steps and loses the second
            go(run, tmp_path / "broken", checkpoint_seconds=ALWAYS, on_step=sitting_of_two())
    result = go(run, tmp_path / "broken")
    assert same(result, go(run, tmp_path / "whole"))
    assert not differing(weights(tmp_path / "broken"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def sitting_of_two():
    """An `on_step` that ends the run at the second step it sees."""
    seen = []

    def stop(done: int, _: float) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise Kill

    return stop


def test_a_process_killed_by_the_system_resumes_with_the_same_bits(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, tiny.__file__, str(tmp_path / "killed"), str(STEPS), "5"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "step-000000003" in folders(tmp_path / "killed"), "that of step 4 may have been in the making"
    run = tiny_run(STEPS)
    go(run, tmp_path / "killed")
    go(run, tmp_path / "whole")
    assert not differing(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_metrics_hold_every_step_once_and_validation_where_it_was_measured(tmp_path):
    run = tiny_run(STEPS, times=3)
    for step in (2, 5, 7):
        with pytest.raises(Kill):
            go(run, tmp_path, checkpoint_seconds=NEVER, keep=frozenset({1, 4, 5}), on_step=kill_at(step))
    result = go(run, tmp_path)
    found = rows(tmp_path)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert [row["tokens"] for row in found] == [BATCH * step for step in range(1, STEPS + 1)]
    assert [row["lr"] for row in found] == [0.01 * factor(run.train, step) for step in range(STEPS)]
    assert [row["step"] for row in found if row["validation_loss"] is not None] == [3, 5, 8]
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in found)
    assert result["validation"] == {"loss": found[-1]["validation_loss"], "bpb": found[-1]["bpb"]}


def test_a_run_whose_batch_grows_reads_on_where_it_was_killed(tmp_path):
    growing = Growth(begin_tokens=3 * BATCH, power=1.0)
    short, long = (
        tiny_run(steps, schedule=WSD(warmup_tokens=2 * BATCH, decay=0.25), growth=growing) for steps in (14, 24)
    )
    shared = stable_steps(short.train)
    go(short, tmp_path / "short", checkpoint_seconds=ALWAYS, keep=frozenset({shared}))
    start = checkpoint.path_at(tmp_path / "short" / "checkpoint", shared)
    with pytest.raises(Kill):
        go(long, tmp_path / "from", start=start, checkpoint_seconds=ALWAYS, on_step=kill_at(long.train.steps - 1))
    result, scratch = go(long, tmp_path / "from", start=start), go(long, tmp_path / "scratch")
    assert not differing(weights(tmp_path / "from"), weights(tmp_path / "scratch"))
    assert rows(tmp_path / "from") == rows(tmp_path / "scratch")[shared:]
    assert [row["tokens"] for row in rows(tmp_path / "scratch")] == [
        long.train.token_at(step) for step in range(1, long.train.steps + 1)
    ]
    assert long.train.steps < 24 and rows(tmp_path / "scratch")[-1]["tokens"] == long.train.tokens
    share = 1 - long.train.token_at(shared) / long.train.tokens
    assert result["tokens_per_second"] == pytest.approx(long.train.tokens * share / result["seconds"])
    assert scratch["validation"] == result["validation"]


def test_a_longer_run_may_start_from_a_shorter_ones_checkpoint(tmp_path):
    short, long = (tiny_run(steps, schedule=WSD(warmup_tokens=2 * BATCH, decay=0.25)) for steps in (8, 14))
    shared = stable_steps(short.train)
    assert shared == 6
    go(short, tmp_path / "short", checkpoint_seconds=ALWAYS, keep=frozenset({shared}))
    assert folders(tmp_path / "short") == ["step-000000006", "step-000000008"]
    start = checkpoint.path_at(tmp_path / "short" / "checkpoint", shared)
    before = {path: path.read_bytes() for path in start.rglob("*") if path.is_file()}
    with pytest.raises(Kill):
        go(long, tmp_path / "from", start=start, checkpoint_seconds=ALWAYS, on_step=kill_at(10))
    result = go(long, tmp_path / "from", start=start)
    scratch = go(long, tmp_path / "scratch")
    assert not differing(weights(tmp_path / "from"), weights(tmp_path / "scratch"))
    assert rows(tmp_path / "from") == rows(tmp_path / "scratch")[shared:]
    assert result["validation"] == scratch["validation"]
    assert (result["steps_taken_here"], scratch["steps_taken_here"]) == (8, 14)
    for place, found in (("from", result), ("scratch", scratch)):
        spent = pq.read_table(tmp_path / place / "metrics.parquet")["seconds"].to_pylist()
        assert found["seconds"] == pytest.approx(sum(spent)), "the steps taken here, and no others, count"
    assert before == {path: path.read_bytes() for path in start.rglob("*") if path.is_file()}


def test_a_finished_run_returns_its_result_without_training(tmp_path):
    run = tiny_run(3)
    result = go(run, tmp_path)

    def untouchable(*arguments: object) -> None:
        raise AssertionError("a finished run was trained again")

    stage = loop.Stage(on_step=untouchable)
    assert loop.train(run, tiny.fresh(run), untouchable, untouchable, untouchable, tmp_path, stage) == result


def test_a_run_killed_between_its_last_checkpoint_and_its_result_still_gives_it(tmp_path, monkeypatch):
    def die(*arguments: object) -> None:
        raise Kill

    run = tiny_run(3)
    with monkeypatch.context() as patched, pytest.raises(Kill):
        patched.setattr(loop, "write_text", die)
        go(run, tmp_path / "broken")
    assert not (tmp_path / "broken" / "result.json").exists()
    assert same(go(run, tmp_path / "broken"), go(run, tmp_path / "whole"))


def test_another_run_in_the_folder_is_refused_with_the_difference(tmp_path):
    go(tiny_run(2), tmp_path)
    with pytest.raises(UserError) as caught:
        go(tiny_run(2, lr=0.5), tmp_path)
    for words in (str(tmp_path), "holds another run (train.optimizer.lr: 0.01 -> 0.5)", "choose another folder"):
        assert words in str(caught.value)


def test_a_run_in_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "locked", functools.partial(locked, patience=0))
    with locked(tmp_path / "lock"), pytest.raises(UserError, match="in use by another process"):
        go(tiny_run(2), tmp_path)


def test_a_run_goes_on_with_the_threads_it_began_with(tmp_path):
    run = tiny_run(4, d_model=128, tokens=4 * 1024, batch_tokens=1024)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = go(run, tmp_path / "whole")
        with pytest.raises(Kill):
            go(run, tmp_path / "killed", on_step=kill_at(2), checkpoint_seconds=ALWAYS)
        torch.set_num_threads(2)
        resumed = go(run, tmp_path / "killed")
    finally:
        torch.set_num_threads(before)
    assert whole["threads"] == resumed["threads"] == 1
    assert not differing(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_every_step_reads_its_own_sequences_however_often_the_run_is_killed(tmp_path):
    run, asked = tiny_run(STEPS), []

    def recorded(first: int, count: int):
        asked.append((first, count))
        return tiny.batches(first, count)

    for last in (3, 6, None):
        stage = loop.Stage(checkpoint_seconds=ALWAYS, **({} if last is None else {"on_step": kill_at(last)}))
        with pytest.raises(Kill) if last else contextlib.nullcontext():
            loop.train(run, tiny.fresh(run), recorded, tiny.loss, tiny.validate, tmp_path, stage)
    assert asked == [(4 * step, 4) for step in (0, 1, 2, 2, 3, 4, 5, 5, 6, 7)]


def test_metrics_ahead_of_the_checkpoint_are_taken_back(tmp_path):
    run = tiny_run(STEPS)
    with pytest.raises(Kill):
        go(run, tmp_path / "killed", checkpoint_seconds=ALWAYS, on_step=kill_at(6))
    root = tmp_path / "killed" / "checkpoint"
    assert [row["step"] for row in rows(tmp_path / "killed")] == [1, 2, 3, 4, 5]
    checkpoint.remove(checkpoint.path_at(root, 5))
    assert folders(tmp_path / "killed") == ["step-000000004"]
    said: list[str] = []
    go(run, tmp_path / "killed", watch=loop.Watch(said.append))
    go(run, tmp_path / "whole")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert len(said) == 1 and "metrics.parquet is not what was written" in said[0]


def test_the_guard_of_a_resumed_run_remembers_its_past(tmp_path, monkeypatch):
    guards = []

    class Watched(guard.Guard):
        def __init__(self, *settings: object) -> None:
            super().__init__(*settings)
            guards.append(self)

    monkeypatch.setattr(guard, "MEMORY_STEPS", 3)
    monkeypatch.setattr(loop, "Guard", Watched)
    run = tiny_run(STEPS)
    with pytest.raises(Kill):
        go(run, tmp_path / "killed", checkpoint_seconds=ALWAYS, on_step=kill_at(6))
    go(run, tmp_path / "killed")
    go(run, tmp_path / "whole")
    states = [(one.seen, one.smooth, one.lowest) for one in guards]
    assert states[1] == states[2]
    assert states[2][2] < 10
