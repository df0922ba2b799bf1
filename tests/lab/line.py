"""The whole line on a tiny corpus, as a process of its own: `python line.py ROOT` runs it, or goes on with it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tiny import tiny_data

from nachim.budget.throughput import Throughput
from nachim.lab import ladder, size, study
from nachim.spec import Machine
from nachim.spec.disk import write_text

STEPS = 60


class Silent:
    """Hears nothing."""

    def __getattr__(self, name: str):
        return lambda *args, **fields: None


def main(root: Path) -> None:
    """A study of shapes and budgets far too small to mean anything, but every stage is the real one."""
    ladder.FEWEST_STEPS = size.FEWEST_STEPS = STEPS
    study.BATCH_FACTOR = 0.05
    question = study.Question(minutes=10.0, data=tiny_data(root), seed=0)
    asked = study.Study(root / "study", question, root / "cache", Silent(), time.monotonic())
    machine = Machine(
        name="test", device="cpu", cores=2, fp32_one_thread=1e11, fp32_all=2e11, bf16_one_thread=1e9, bf16_all=2e9
    )
    write_text(root / "study" / "machine.json", json.dumps(machine.to_json()))
    slow = Throughput(threads=1, flops=(1e5, 1e8), seconds=(1e5 / 1.2e7, 1e8 / 1.2e7))
    pace = {"alone": slow.to_json(), "beside": slow.to_json(), "workers": 2}
    write_text(root / "study" / "pace.json", json.dumps(pace))
    print(json.dumps(asked.run()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
