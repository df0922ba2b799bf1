"""What a run tells others while it lives: a heartbeat that any process can check, and a journal of what befell it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEARTBEAT = "heartbeat.json"
JOURNAL = "journal.jsonl"
EVERY_SECONDS = 1.0
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Pulse:
    """A run's last sign of life: what it was doing, how far it was, in which process, and how long ago (seconds).

    `alive` says whether that process was still there and training; None where it is on another machine.
    """

    state: str
    step: int
    steps: int
    pid: int
    seconds: float
    alive: bool | None


class Heartbeat:
    """Writes `heartbeat.json`, at most once in `EVERY_SECONDS` by the clock that nobody can set."""

    def __init__(self, out: Path, steps: int) -> None:
        self.path, self.steps = out / HEARTBEAT, steps
        self.last = -EVERY_SECONDS
        self.step = 0

    def beat(self, step: int, state: str = "training") -> None:
        """Say that `step` steps are done. A disk that refuses leaves the old beat, which is told by its age."""
        now, self.step = time.monotonic(), step
        if state == "training" and now - self.last < EVERY_SECONDS:
            return
        self.last = now
        told = {"state": state, "step": step, "steps": self.steps, "pid": os.getpid(), "boot": boot()}
        told |= {"monotonic": now, "time": wall_time()}
        temporary = self.path.with_name(f".{HEARTBEAT}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(told) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)


def pulse(out: Path) -> Pulse | None:
    """The last sign of life of the run in `out`; None when there is none that can be read. Costs one small file."""
    try:
        told: dict[str, Any] = json.loads((out / HEARTBEAT).read_text(encoding="utf-8"))
        here = told["boot"] == boot()
        then = datetime.datetime.fromisoformat(told["time"])
        seconds = time.monotonic() - told["monotonic"] if here else (_now() - then).total_seconds()
        alive = told["state"] == "training" and Path(f"/proc/{told['pid']}").exists() if here else None
        return Pulse(told["state"], told["step"], told["steps"], told["pid"], seconds, alive)
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Journal:
    """Appends what befell a run to `journal.jsonl`, one JSON object a line, and says it aloud."""

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = out / JOURNAL, say

    def note(self, text: str) -> None:
        """Say `text` and record it."""
        self.record(text)
        self.say(text)

    def record(self, text: str) -> None:
        """Record `text`, where the disk allows."""
        line = json.dumps({"time": wall_time(), "pid": os.getpid(), "said": text}) + "\n"
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(line)


def boot() -> str:
    """What tells one start of this machine from another, and from other machines."""
    try:
        return BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return os.uname().nodename


def wall_time() -> str:
    """The time of day, UTC: for people. Nothing is decided by it on one machine."""
    return _now().isoformat(timespec="seconds")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
