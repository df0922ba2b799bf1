"""Faults thrown at a run in processes of its own: none is lost, each is told, and the bits are the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import soak

ROOT = Path(__file__).resolve().parents[2]
FAULTS = len(soak.KINDS)


@pytest.fixture(scope="module")
def tally():
    """What came of one fault of each kind."""
    command = [sys.executable, "bench/soak.py", "--faults", str(FAULTS), "--steps", "40", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_every_kind_of_fault_was_made(tally):
    allowed = set(soak.KINDS) - (set() if tally["tmpfs"] else {"read-only disk"})
    assert set(tally["by_kind"]) >= allowed and tally["faults"] == FAULTS


def test_no_run_was_lost_and_each_ended_with_the_same_bytes(tally):
    assert tally["lost"] == 0, tally["why_lost"]
    assert tally["identical"] == tally["runs"] > 0


def test_every_fault_was_told(tally):
    assert not tally["untold"] and tally["told"] == FAULTS
