"""What runs cost in time and on disk."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nachim.budget.cost import checkpoints, disk_bytes, makespan, moments_bytes
from nachim.spec import AdamW, AdamW8, Keep, Muon, ScheduleFreeAdamW
from nachim.train import checkpoint
from nachim.train.loop import Stage, train
from nachim.train.step import Stepper
from tests.train.tiny import ALWAYS, batches, fresh, loss, tiny_run


def best_makespan(seconds: list[float], workers: int) -> float:
    """The shortest wall time over every way to hand out the jobs."""
    best = float("inf")
    for owners in itertools.product(range(workers), repeat=len(seconds)):
        load = [0.0] * workers
        for owner, job in zip(owners, seconds, strict=True):
            load[owner] += job
        best = min(best, max(load))
    return best


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=6), st.integers(1, 3))
def test_the_wall_time_is_within_grahams_bound_of_the_best(seconds, workers):
    found, best = makespan(seconds, workers), best_makespan(seconds, workers)
    assert best * (1 - 1e-9) <= found <= best * (4 / 3 - 1 / (3 * workers)) * (1 + 1e-9)


def test_known_wall_times():
    assert makespan([], 2) == 0.0
    assert makespan([3.0, 1.0, 2.0], 1) == 6.0
    assert makespan([3.0, 1.0, 2.0], 2) == 3.0
    assert makespan([3.0, 1.0, 2.0], 9) == 3.0
    assert makespan([3, 3, 2, 2, 2], 2) == 7.0  # Graham's worst case: the best is 6


KEPT = {
    "the newest": {},
    "several": {"keep": Keep(last=2, every=2, best=True)},
    "Muon": {"optimizer": Muon(lr=0.01)},
}


@pytest.mark.parametrize("name", KEPT)
def test_a_finished_run_takes_the_disk_it_was_said_to(name, tmp_path: Path):
    run = tiny_run(5, d_model=192, times=5, **KEPT[name])
    best = iter((3.0, 1.0, 2.0, 2.0, 2.0))
    train(
        run, fresh(run), batches, loss, lambda model: {"loss": next(best)}, tmp_path, Stage(checkpoint_seconds=ALWAYS)
    )
    assert checkpoint.steps(tmp_path / "checkpoint") == ([2, 4, 5] if name == "several" else [5])
    taken = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    expected = disk_bytes(run) * (3 / 5 if name == "several" else 1)  # the best and the newest but one are among those
    assert expected == pytest.approx(taken, rel=0.1)


@pytest.mark.parametrize("kind", [AdamW, AdamW8, Muon, ScheduleFreeAdamW])
def test_moments_are_as_large_as_the_optimizers_own(kind):
    run = tiny_run(2, d_model=192, optimizer=kind(lr=0.01))
    stepper = Stepper(run, fresh(run), loss)
    checkpoint._materialise(stepper)
    held = sum(each.nbytes for each in tree_leaves(stepper.optimizer.state_dict()) if isinstance(each, Tensor))
    assert moments_bytes(run) == pytest.approx(held, rel=0.06)  # 8-bit AdamW leaves the tiniest matrices in fp32


@given(st.integers(2, 30), st.integers(1, 4), st.none() | st.integers(1, 9), st.booleans())
def test_no_more_checkpoints_stay_than_are_counted(steps, last, every, best):
    run = tiny_run(steps, times=2 if best else 1, keep=Keep(last=last, every=every, best=best))
    multiples = {step for step in range(1, steps + 1) if every and step % every == 0}
    for best_step in range(1, steps + 1) if best else (steps,):
        found = set(range(1, steps + 1))
        kept = set(sorted(found)[-last:]) | multiples | {best_step}
        assert len(kept) <= checkpoints(run) <= steps
