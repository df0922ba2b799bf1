"""What the terminal shows of a run in training."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from nachim.app import live
from nachim.app.live import WIDTH, LiveRun, Trail, sparkline
from nachim.spec import Machine
from nachim.train.loop import Watch
from tests.train.tiny import differing, go, tiny_run, weights

MACHINE = Machine(
    name="test", device="cpu", cores=2, fp32_one_thread=1e8, fp32_all=2e8, bf16_one_thread=1e9, bf16_all=2e9
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when it is told to."""
    at = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: at[0])
    return at


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def row(step: int, **more: float) -> dict[str, float | None]:
    found = {"step": step, "tokens": 32 * step, "loss": 5.0 / step, "lr": 0.01, "grad_norm": 0.5, "seconds": 0.1}
    return found | {"validation_loss": None, "bpb": None} | more


def shown(one: LiveRun) -> str:
    held = console(False)
    held.print(one.frame())
    return held.file.getvalue()


def test_a_frame_says_how_far_how_fast_and_what_is_safe(tmp_path, clock):
    run, one = tiny_run(100), LiveRun(console(False), MACHINE, 1)
    one.begin(tmp_path, run, 0, print)
    for step in range(1, 11):
        clock[0] += 0.5
        one.after(row(step, **({"validation_loss": 1.25, "bpb": 0.9} if step == 6 else {})))
        if step == 8:
            one.saving(8)
    one.heard("a checkpoint is damaged")
    said = shown(one)
    work = run.flops_per_token + run.model.head_flops_per_token
    assert "10 of 100, 320 tokens" in said and "0.5000" in said
    assert f"64 tokens/s, MFU {64 * work / 1e8:.1%}, 45 s left" in said
    assert "validation 1.2500, 0.9000 bpb at step 6" in said
    assert "checkpoint of step 8, 1 s ago" in said and "a checkpoint is damaged" in said


def test_speed_is_that_of_late(tmp_path, clock):
    one = LiveRun(console(False), None, 1)
    one.begin(tmp_path, tiny_run(1000), 0, print)
    for step in range(1, 301):
        clock[0] += 1.0 if step <= 200 else 0.25
        one.after(row(step))
    assert "128 tokens/s" in shown(one) and "MFU" not in shown(one)


def test_optional_numbers_are_shown_where_they_are_measured(tmp_path, clock):
    one = LiveRun(console(False), MACHINE, 1)
    one.begin(tmp_path, tiny_run(10), 4, print)
    assert "waiting for the first step" in shown(one)
    one.after(row(5, noise_tokens=12345.0, imbalance=1.5))
    assert "noise scale 12,345 tokens" in shown(one) and "imbalance 1.50" in shown(one)
    assert "checkpoint of step 4" in shown(one)
    one.after({name: value for name, value in row(6, validation_loss=1.5).items() if name != "bpb"})
    assert "validation 1.5000 at step 6" in shown(one)


def test_where_there_is_no_terminal_a_line_comes_now_and_then(tmp_path, clock):
    one = LiveRun(console(False), None, 1)
    one.begin(tmp_path, tiny_run(100), 0, print)
    for step in range(1, 21):
        clock[0] += 2.0
        one.after(row(step))
    lines = one.console.file.getvalue().splitlines()
    assert len(lines) == 2 and lines[0].startswith("  step 8 of 100, loss 0.625, 16 tokens/s")


def test_a_terminal_is_drawn_on_and_no_bit_changes(tmp_path):
    run, one = tiny_run(6), LiveRun(console(True), MACHINE, 1)
    go(run, tmp_path / "seen", watch=Watch(onlookers=(one,)))
    go(run, tmp_path / "alone")
    assert "6 of 6, 192 tokens" in one.console.file.getvalue()
    assert one.live is None and not differing(weights(tmp_path / "seen"), weights(tmp_path / "alone"))


def test_a_trail_of_any_length_keeps_its_mean_in_few_points():
    trail = Trail()
    for value in range(WIDTH * 2**6):
        trail.add(float(value))
    trail.add(math.nan)
    assert WIDTH <= len(trail.means) < 2 * WIDTH
    assert sum(trail.means) / len(trail.means) == pytest.approx((WIDTH * 2**6 - 1) / 2)
    assert trail.means == sorted(trail.means)


def test_sparklines():
    assert sparkline([], 8) == ""
    assert sparkline([1.0], 8) == "▁"
    assert sparkline([float(value) for value in range(8)], 8)[0] == "▁"
    falling = sparkline([100.0, *(10.0 - 0.1 * step for step in range(90))], 48)
    assert len(falling) <= 48 and falling[0] == "█" and falling[-1] == "▁" and len(set(falling)) >= 7


def test_texts_of_a_mixture_are_told_apart(tmp_path, clock):
    one = LiveRun(console(False), MACHINE, 1)
    one.begin(tmp_path, tiny_run(100), 0, print)
    one.after(row(1, **{"validation_loss": 1.25, "bpb": 0.9, "bpb/old": 0.5, "bpb/new": 1.5}))
    assert "validation 1.2500, 0.9000 bpb (old 0.5000, new 1.5000) at step 1" in shown(one)
