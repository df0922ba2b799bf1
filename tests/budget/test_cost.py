"""What runs cost in time and on disk."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nachim.budget.cost import disk_bytes, makespan
from tests.train.tiny import go, tiny_run


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


def test_a_finished_run_takes_the_disk_it_was_said_to(tmp_path: Path):
    run = tiny_run(2, d_model=192)
    go(run, tmp_path)
    taken = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert disk_bytes(run) == pytest.approx(taken, rel=0.1)
