"""The whole line on a tiny corpus, as a process of its own: `python line.py ROOT` runs it, or goes on with it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tiny import tiny_data

from nachim.budget.shape import shape
from nachim.budget.throughput import Throughput
from nachim.data.prepare import prepare
from nachim.lab import ladder, size, study
from nachim.lab.sweep import sweep
from nachim.spec import Machine
from nachim.spec.disk import write_text

STEPS = 256
TOP = 1e10


class Silent:
    """Hears nothing."""

    def __getattr__(self, name: str):
        return lambda *args, **fields: None


def main(root: Path) -> None:
    """A study of shapes and budgets far too small to mean anything, but every stage is the real one.

    Machine, speed and plan are given, so that the test does not depend on how fast the machine is.
    """
    ladder.FEWEST_STEPS = STEPS
    study.BATCH_FACTOR, study.REACH = 0.02, 2.0
    question = study.Question(minutes=0.1, data=tiny_data(root), seed=0)
    asked = study.Study(root / "study", question, root / "cache", Silent(), time.monotonic())
    machine = Machine(
        name="test", device="cpu", cores=2, fp32_one_thread=1e11, fp32_all=2e11, bf16_one_thread=1e9, bf16_all=2e9
    )
    write_text(root / "study" / "machine.json", json.dumps(machine.to_json()))
    rate = Throughput(threads=1, flops=(1e5, 1e8), seconds=(1e-5, 1e-2))
    pace = {"alone": rate.to_json(), "beside": rate.to_json(), "workers": 2}
    write_text(root / "study" / "pace.json", json.dumps(pace))
    prepare(question.data, root / "cache")
    shapes = tuple(shape(width, question.data.tokenizer.vocab_size) for width in (32, 40, 48, 56))
    plan = size.Plan(
        design="trunks",
        levels=tuple(ladder.budgets(TOP, count=5, span=4.0)),
        shapes=shapes,
        sweep=sweep(asked.recipe(), shapes[0], TOP / 4)[0],
        target_flops=2 * TOP,
        sweep_seconds=1.0,
        ladder_seconds=1.0,
        target_seconds=1.0,
        disk=1,
    )
    if not (root / "study" / "plan.json").exists():
        plan.save(root / "study" / "plan.json")
    print(json.dumps(asked.run()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
