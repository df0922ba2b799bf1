"""A run that has gone wrong stops before its weights do, and says what to try."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nachim.spec import UserError
from nachim.train import checkpoint
from nachim.train.guard import MEMORY_STEPS, SURGE_NATS, Diverged, Guard
from nachim.train.loop import Stage, train
from tests.train.tiny import ALWAYS, NEVER, batches, differing, fresh, go, loss, rows, tiny_run, validate, weights


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
        restored.observe(value)
    assert watch(future, restored) == watch(past + future) - len(past)


def test_the_message_says_where_from_and_what_to_try():
    guard = Guard(0.5)
    guard.last_good = "out/checkpoint/step-000000004"
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
