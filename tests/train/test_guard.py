"""A run that has gone wrong stops before its weights do, and says what to try."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nachim.model.weights import WEIGHTS
from nachim.spec import RollBack, Run, SkipStep, UserError
from nachim.spec.safety import Outliers
from nachim.train import checkpoint
from nachim.train.guard import MEMORY_STEPS, SURGE_NATS, Diverged, Fault, Guard
from nachim.train.loop import Stage, Watch, train
from nachim.train.step import Stepper
from tests.train.test_experts import sparse_run
from tests.train.tiny import (
    ALWAYS,
    NEVER,
    Kill,
    batches,
    differing,
    fresh,
    go,
    kill_at,
    loss,
    rows,
    tiny_run,
    validate,
    weights,
)


def watch(losses: list[float], guard: Guard | None = None) -> int | None:
    """The step at which a guard stops over `losses`; None when it does not."""
    guard = guard or Guard(0.01)
    for step, value in enumerate(losses):
        try:
            guard.check(step, value, 1.0)
        except Diverged:
            return step
    return None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_or_gradient_that_is_not_finite_stops_at_once(bad):
    with pytest.raises(Diverged, match=r"stopped at step 3: loss .* not both finite"):
        Guard(0.01).check(3, bad, 1.0)
    with pytest.raises(Diverged, match=r"stopped at step 3: loss .* not both finite"):
        Guard(0.01).check(3, 2.0, bad)


def test_a_surge_stops_once_the_smoothed_loss_shows_it():
    fallen = [5.0] * (2 * MEMORY_STEPS)
    risen = [8.0] * MEMORY_STEPS
    # After n steps 3 nat higher, the smoothed loss stands 3 (1 - (1 - 1/50)^n) higher.
    needed = math.ceil(math.log(1 - SURGE_NATS / 3) / math.log(1 - 1 / MEMORY_STEPS))
    assert watch(fallen + risen) == len(fallen) + needed - 1


def test_a_single_spike_noise_and_a_slow_start_do_not_stop_a_run():
    noise = np.random.default_rng(0).normal(0, 0.5, 400)
    assert watch([8.0 + x for x in noise] + [11.0] + [8.0 + x for x in noise]) is None
    assert watch([5.0] + [5.9 + x / 10 for x in noise]) is None
    assert watch([2.0] * 5 + [9.0] * (MEMORY_STEPS - 5)) is None, "judged only after as many steps as it remembers"


def test_a_guard_that_is_fed_the_past_judges_like_one_that_saw_it():
    past, future = [5.0] * 80, [8.0] * 40
    restored = Guard(0.01)
    for value in past:
        restored.observe(value, 1.0)
    assert watch(future, restored) == watch(past + future) - len(past)


def test_the_message_says_where_from_and_what_to_try():
    guard = Guard(0.5, last_good=lambda: "out/checkpoint/step-000000004")
    with pytest.raises(UserError) as caught:
        guard.check(7, math.nan, 1.0)
    for words in ("step 7", "nan", "out/checkpoint/step-000000004", "a lower learning rate than 0.5", "warm-up"):
        assert words in str(caught.value)
    with pytest.raises(Diverged, match="last good checkpoint: none was written yet"):
        Guard(0.5).check(0, math.nan, 1.0)


def poisoned(bad_step: int):
    """A loss that is not a number at one step."""
    calls = iter(range(1000))

    def lossy(model: nn.Module, ids_BT: Tensor) -> Tensor:
        value = loss(model, ids_BT)
        return value * math.nan if next(calls) == bad_step else value

    return lossy


def test_weights_on_disk_are_the_last_good_ones(tmp_path):
    run, out = tiny_run(), tmp_path / "run"
    seen: list[int] = []
    stage = Stage(checkpoint_seconds=ALWAYS, on_step=lambda step, _: seen.append(step))
    with pytest.raises(Diverged) as caught:
        train(run, fresh(run), batches, poisoned(5), validate, out, stage)
    assert "stopped at step 5" in str(caught.value)
    assert str(checkpoint.path_at(out / "checkpoint", 5)) in str(caught.value)
    assert seen == [1, 2, 3, 4, 5]
    assert not (out / "result.json").exists()
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4, 5]
    go(run, tmp_path / "good", checkpoint_seconds=NEVER, keep=frozenset({5}))
    good = checkpoint.path_at(tmp_path / "good" / "checkpoint", 5)
    assert not differing(weights(out), checkpoint.load_file(good / "weights.safetensors"))
    assert all(torch.isfinite(weight).all() for weight in weights(out).values())


def test_a_run_that_stopped_goes_on_from_its_last_good_step(tmp_path):
    run, out = tiny_run(), tmp_path / "run"
    with pytest.raises(Diverged):
        train(run, fresh(run), batches, poisoned(5), validate, out, Stage(checkpoint_seconds=ALWAYS))
    go(run, out)
    go(run, tmp_path / "good")
    assert not differing(weights(out), weights(tmp_path / "good"))


def outlier(policy: Outliers, *past: float) -> Guard:
    """A guard that has seen good steps of these losses, and a gradient norm of 1 in each."""
    guard = Guard(0.01, policy)
    for value in past:
        guard.observe(value, 1.0)
    return guard


def test_a_step_is_skipped_beyond_so_many_deviations_and_not_before():
    past = [1.0, 3.0] * 4  # mean 2, deviation 1
    assert outlier(SkipStep(sigmas=4.0, window=8), *past).check(8, 5.9, 1.0)
    skipping = outlier(SkipStep(sigmas=4.0, window=8), *past)
    assert not skipping.check(8, 6.1, 1.0)
    assert skipping.told == "loss 6.1 stands out from the mean 2 of the last 8 good steps"
    assert outlier(SkipStep(sigmas=4.0, window=9), *past).check(8, 6.1, 1.0), "judged once the window is full"
    # Gradient norms of exactly 1 have no spread: 1 % of their mean stands for it.
    assert outlier(SkipStep(sigmas=4.0, window=8), *past).check(8, 2.0, 1.039)
    assert not outlier(SkipStep(sigmas=4.0, window=8), *past).check(8, 2.0, 1.041)


def test_what_was_skipped_is_no_part_of_what_the_next_step_is_held_against():
    guard = outlier(SkipStep(sigmas=4.0, window=8), *[1.0, 3.0] * 4)
    assert [guard.check(8 + i, 7.0, 1.0) for i in range(3)] == [False] * 3
    assert guard.check(11, 2.0, 1.0)


def test_more_than_so_many_skipped_steps_in_a_row_end_the_run():
    guard = Guard(0.01, SkipStep(limit=2))
    assert not guard.check(0, math.nan, 1.0) and not guard.check(1, 1.0, math.inf)
    assert guard.check(2, 1.0, 1.0), "a good step between them starts the count again"
    assert not guard.check(3, math.nan, 1.0) and not guard.check(4, math.nan, 1.0)
    with pytest.raises(Diverged, match="after 2 skipped steps in a row"):
        guard.check(5, math.nan, 1.0)


def test_a_roll_back_is_asked_for_by_an_outlier_and_by_a_lasting_rise():
    with pytest.raises(Fault, match="step 3: loss nan"):
        Guard(0.01, RollBack()).check(3, math.nan, 1.0)
    guard = Guard(0.01, RollBack(window=10_000))
    with pytest.raises(Fault, match="the smoothed loss rose"):
        for step, value in enumerate([5.0] * 100 + [8.0] * 50):
            guard.check(step, value, 1.0)


def spoilt(*sequences: int):
    """Batches whose sequences of these indices are what `sick` cannot bear: all zero."""

    def made(first: int, count: int) -> np.ndarray:
        found = batches(first, count)
        for index in sequences:
            if first <= index < first + count:
                found[index - first] = 0
        return found

    return made


def sick(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """The tiny loss, which is not a number where a sequence is all zero."""
    value = loss(model, ids_BT)
    return value * math.nan if (ids_BT == 0).all(1).any() else value


def sit(run: Run, out: Path, *sequences: int, **stage: Any) -> list[str]:
    """Train on spoilt data; what was said."""
    said: list[str] = []
    stage = {"checkpoint_seconds": ALWAYS} | stage
    train(run, fresh(run), spoilt(*sequences), sick, validate, out, Stage(watch=Watch(said.append), **stage))
    return said


def test_a_skipped_step_leaves_the_weights_and_is_written_down(tmp_path):
    run = tiny_run(8, on_spike=SkipStep())
    said = sit(run, tmp_path, 13, keep=frozenset({3, 4}))
    three, four = (load_file(checkpoint.path_at(tmp_path / "checkpoint", step) / WEIGHTS) for step in (3, 4))
    assert not differing(three, four) and differing(four, weights(tmp_path))
    assert said == ["step 3 was skipped: loss nan and gradient norm nan are not both finite"]
    found = rows(tmp_path)
    assert [row["step"] for row in found] == list(range(1, 9))
    assert [row["skipped"] for row in found] == [None, None, None, 1, None, None, None, None]
    assert json.loads((tmp_path / "journal.jsonl").read_text())["said"] == said[0]


def test_a_skipped_step_moves_no_expert(tmp_path):
    run = sparse_run()
    stepper = Stepper(run, fresh(run), loss)
    before = {name: value.clone() for name, value in stepper.masters.state().items()}
    x_BT = torch.arange(36).view(4, 9)
    told = stepper.take(0, x_BT, outlier(SkipStep(window=2), 1e-3, 1e-3))
    assert told.skipped == 1 and not differing(before, stepper.masters.state())
    untouched = Stepper(run, fresh(run), loss)
    for one in (stepper, untouched):
        one.take(0, x_BT, Guard(1.0))
    assert not differing(stepper.masters.state(), untouched.masters.state())


def test_a_roll_back_goes_on_from_a_mark_with_the_data_after_the_fault(tmp_path):
    policy = RollBack(every=2)
    run = tiny_run(8, on_spike=policy)
    said = sit(run, tmp_path / "rolled", 5 * 4 + 1)
    assert len(said) == 1 and "step 5: loss nan" in said[0] and "rolled back to step 4, and 64 tokens" in said[0]

    def without(first: int, count: int) -> np.ndarray:
        """The same data without the two batches that were passed over."""
        return batches(first if first < 4 * 4 else first + 2 * 4, count)

    train(run, fresh(run), without, loss, validate, tmp_path / "plain", Stage())
    assert not differing(weights(tmp_path / "rolled"), weights(tmp_path / "plain"))
    found = rows(tmp_path / "rolled")
    assert [row["passed_tokens"] for row in found] == [None, None, None, None, 64, None, None, None]
    plain = rows(tmp_path / "plain")
    assert [row["loss"] for row in found] == [row["loss"] for row in plain]


@pytest.mark.parametrize("policy", [SkipStep(), RollBack(every=3)], ids=["skip", "roll back"])
def test_a_run_killed_about_a_fault_ends_with_the_same_bits(tmp_path, policy):
    run, bad = tiny_run(8, on_spike=policy), (14, 21)
    sit(run, tmp_path / "whole", *bad, checkpoint_seconds=NEVER)
    for step in (3, 5, 7):
        with pytest.raises(Kill):
            sit(run, tmp_path / "killed", *bad, on_step=kill_at(step))
    sit(run, tmp_path / "killed", *bad)
    assert not differing(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert repr(rows(tmp_path / "killed")) == repr(rows(tmp_path / "whole")), "nan is not equal to itself, its word is"


def test_a_run_is_rolled_back_so_many_times_and_then_ends(tmp_path):
    run = tiny_run(8, on_spike=RollBack(every=4, limit=2))
    with pytest.raises(Diverged, match=r"not both finite, after 2 roll-backs; last good checkpoint: .*step-0"):
        sit(run, tmp_path, 17, 25, 33)
