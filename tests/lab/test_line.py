"""The line survives `kill -9`: in the ladder, and again in the big run, with the same sealed forecast."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nachim.app.report import write_report

SCRIPT = Path(__file__).with_name("line.py")
PATIENCE = 300


def begin(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(SCRIPT), str(root)], stdout=subprocess.PIPE, text=True)


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, f"the line ended before it could be killed: {process.stdout.read()}"
        assert time.monotonic() < deadline, "the line did not come as far as the kill"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_line_killed_in_ladder_and_target_ends_with_the_same_seal(tmp_path: Path) -> None:
    study = tmp_path / "study"
    kill_when(begin(tmp_path), lambda: len(list(study.glob("ladder/*/result.json"))) >= 4)
    assert not (study / "forecast.json").exists()
    done = {path: path.stat().st_mtime_ns for path in study.glob("*/*/result.json")}

    kill_when(begin(tmp_path), lambda: (study / "target" / "run.json").exists())
    sealed = (study / "forecast.json").read_bytes()
    assert not (study / "verdict.json").exists()

    last = begin(tmp_path)
    output, _ = last.communicate(timeout=PATIENCE)
    assert last.returncode == 0, output
    assert (study / "forecast.json").read_bytes() == sealed
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished run was trained again"
    verdict = json.loads(output)
    assert verdict == json.loads((study / "verdict.json").read_text())
    assert len(json.loads((study / "commands.json").read_text())) == 3
    page = write_report(study).read_text()
    assert f"{verdict['measured']:.4f}" in page
