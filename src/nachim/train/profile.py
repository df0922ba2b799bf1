"""Where a step's time goes: a trace of some steps, and the operations that took most of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from nachim.spec import Run, UserError
from nachim.spec.disk import replacing, write_text
from nachim.train.onlooker import Onlooker
from nachim.train.step import Stepper

PROFILE, TRACE, OPERATIONS = "profile", "trace.json", "operations.json"
PASSED_STEPS = 3
"""Steps that are let pass first: what is made once is no part of a step."""


@dataclass(frozen=True)
class Operation:
    """An operation of the traced steps: how often, its own seconds (those of others it called apart), and the share of
    all operations' own seconds that this is."""

    name: str
    calls: int
    seconds: float
    share: float


class Profile(Onlooker):
    """Traces `steps` steps of a sitting, into `profile/` in the run's folder; a traced step is slower, not other.

    `trace.json` opens in Perfetto or chrome://tracing; `operations.json` is the table that `told` takes, largest first.
    """

    def __init__(self, steps: int, told: Callable[[list[Operation]], None] = lambda found: None) -> None:
        if steps < 1:
            raise UserError(f"--profile {steps}: give the number of steps to trace, at least 1")
        self.steps, self.told = steps, told
        self.profiler: Any = None
        self.seen, self.traced = 0, -1
        self.done = False

    def begin(self, out: Path, run: Run, step: int, say: Callable[[str], None]) -> None:
        """Trace in `out`, the first steps let pass where there are enough of them."""
        self.folder, self.say = out / PROFILE, say
        self.pass_by = max(0, min(PASSED_STEPS, run.train.steps - step - self.steps - 1))

    def before(self, stepper: Stepper, step: int, x_BT: Tensor) -> None:
        """Begin to trace once enough steps have passed; the profiler itself needs a step to warm up."""
        self.seen += 1
        if self.seen > self.pass_by and self.profiler is None and not self.done:
            kinds = {ProfilerActivity.CPU} | ({ProfilerActivity.CUDA} if x_BT.is_cuda else set())
            once = torch.profiler.schedule(wait=0, warmup=1, active=self.steps, repeat=1)
            self.profiler = torch.profiler.profile(activities=kinds, schedule=once)
            self.profiler.start()

    def after(self, row: Mapping[str, float | None]) -> None:
        """Count the step, and write once enough were traced."""
        if self.profiler is None:
            return
        self.traced += 1
        if self.traced == self.steps:
            self.end()
        else:
            self.profiler.step()

    def end(self) -> None:
        """Write what was traced, if anything was."""
        if self.profiler is None:
            return
        profiler, traced = self.profiler, self.traced
        self.profiler, self.done = None, True
        profiler.stop()
        if traced < 1:
            return
        with replacing(self.folder / TRACE) as temporary:
            profiler.export_chrome_trace(str(temporary))
        found = operations(profiler)
        table = {"steps": traced, "operations": [asdict(each) for each in found]}
        write_text(self.folder / OPERATIONS, json.dumps(table, indent=1) + "\n")
        self.say(f"{traced} steps traced: {self.folder / TRACE}")
        self.told(found)


def operations(profiler: Any) -> list[Operation]:
    """The operations of a trace, those that took longest by themselves first; on a GPU by the GPU's time."""
    events = profiler.key_averages()
    on_gpu = any(event.device_type == DeviceType.CUDA for event in events)

    def own(event: Any) -> float:
        return 1e-6 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = [event for event in events if not event.key.startswith("ProfilerStep")]
    kept = [event for event in events if own(event) > 0 and (not on_gpu or event.device_type == DeviceType.CUDA)]
    total = sum(map(own, kept))
    return [
        Operation(event.key, event.count, own(event), own(event) / total)
        for event in sorted(kept, key=own, reverse=True)
    ]
