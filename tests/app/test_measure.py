"""The verb `nachim measure`: files, JSON, table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nachim.app import measure as verb
from nachim.budget.measured import measured_device, measured_steps
from nachim.budget.step_cost import TERMS, StepCost
from nachim.lab import speed
from nachim.spec import Device, UserError
from nachim.train import measure as measuring

DEVICE = Device(
    name="a CPU",
    kind="cpu",
    fp32_flops=2e11,
    bf16_flops=1e11,
    sustained=1.0,
    memory_bytes=8e9,
    memory_bandwidth=1e10,
    link_bandwidth=2e9,
    link_latency=5e-5,
    sources=("a test",),
)
STEPS = StepCost(threads=2, points=12, error=0.02, **dict.fromkeys(TERMS, 1e-9))


@pytest.fixture
def measured(monkeypatch):
    """A machine whose measurement takes no time."""
    found = measuring.Measured(
        device=DEVICE,
        cores=2,
        matmul={(1, (8, 8, 8), "fp32"): 1e11, (2, (8, 8, 8), "fp32"): 2e11, (2, (8, 8, 8), "bf16"): 1e11},
        bandwidth={1: 8e9, 2: 1e10},
        folder=Path("/somewhere"),
        disk_write=5e8,
        disk_read=2e9,
        load=1.5,
    )
    monkeypatch.setattr(measuring, "measure_device", lambda folder, kind, say: found)
    monkeypatch.setattr(speed, "measure_step_cost", lambda threads, seconds: STEPS)


def test_it_writes_what_a_plan_reads(measured, tmp_path, capsys):
    out = tmp_path / "device.json"
    assert verb.measure(out, json=True) == 0
    assert measured_device(out) == DEVICE and measured_steps(out) == STEPS
    said = json.loads(capsys.readouterr().out)
    assert said["device"] == DEVICE.to_json() and said["file"] == str(out)
    assert said["matmul"][0] == {"threads": 1, "shape": [8, 8, 8], "precision": "fp32", "flops": 1e11}
    assert said["load_average"] == 1.5 and "load average 1.5 on 2 cores" in said["warnings"][0]


def test_the_table_says_every_figure_and_the_load(measured, tmp_path, capsys):
    verb.measure(tmp_path / "device.json")
    said = capsys.readouterr().out
    for text in ("8x8x8", "200 G", "8.0 GB", "10 GB/s 2 threads", "500 MB/s", "50 µs", "load average 1.50", "warning"):
        assert text in said


def test_a_machine_that_was_not_measured(tmp_path):
    with pytest.raises(UserError, match=r"has not been measured.*run `nachim measure` first"):
        measured_device(tmp_path / "none.json")
    assert measured_steps(tmp_path / "none.json") is None


def test_progress_is_not_part_of_the_answer(capsys):
    verb._progress("the disk")
    assert capsys.readouterr() == ("", "measuring the disk\n")
