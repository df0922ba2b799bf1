"""How work shows in the terminal: a line for the stage, a line for every run in training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from nachim.spec import Machine
from nachim.train.stopping import stop_on_signal

if TYPE_CHECKING:
    from nachim.lab.launch.local import Event
    from nachim.train.profile import Operation

STAGES = {
    "corpus": "reading and tokenizing the corpus",
    "machine": "measuring this machine",
    "speed": "measuring training speed",
    "sweep": "sweeping learning rate and batch on the bottom rung",
    "ladder": "climbing the ladder",
    "forecast": "fitting the law",
    "target": "training the forecast model",
    "corpora": "reading and tokenizing the corpora",
    "mixtures": "training a small run for each mixture",
    "longer runs": "training the runs that the forecast is about",
    "reference": "training the reference",
    "proxy": "training the proxy, its weights decided on the way",
}
PLAIN_EVERY_SECONDS = 15.0


class TerminalView:
    """Shows a study's progress on stderr; plain lines where stderr is not a terminal. Use it in a `with` block.

    Within the block SIGTERM and ctrl-C ask a run that is in training to save and end: `stopping` says so.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        self.bars = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.stage_task: TaskID | None = None
        self.runs: dict[str, tuple[TaskID, float, int]] = {}
        self.machine: Machine | None = None
        self.precision = "fp32"
        self.spoke = 0.0
        self.held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.asked = self.held.enter_context(stop_on_signal())
        self.bars.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.bars.stop()
        self.held.close()

    def quiet(self) -> None:
        """No bars from here on: somebody else draws."""
        self.bars.stop()

    def stopping(self) -> bool:
        """Whether somebody asked to end: what is in training saves, and goes on with the next command."""
        return self.asked()

    def knows(self, machine: Machine) -> None:
        """MFU is shown against this machine's measured peaks."""
        self.machine, self.precision = machine, machine.precision

    def stage(self, name: str, seconds: float | None = None) -> None:
        """A stage begins."""
        for task, _, _ in self.runs.values():
            self.bars.remove_task(task)
        self.runs.clear()
        if self.stage_task is not None:
            self.bars.remove_task(self.stage_task)
        about = f" (about {clock(seconds)})" if seconds else ""
        title = STAGES.get(name, name)
        self.console.print(f"[bold]{title}[/]{about}")
        self.stage_task = self.bars.add_task(title, total=None, note="")

    def say(self, text: str) -> None:
        """One sentence worth reading."""
        self.console.print(f"  {text}", markup=False, soft_wrap=True)

    def share(self, what: str, done: float) -> None:
        """`done` (0 to 1) of `what` within the stage."""
        if self.stage_task is not None:
            self.bars.update(self.stage_task, description=what, total=1.0, completed=done)

    def event(self, event: Event) -> None:
        """News of a training run: its bar moves, and goes when the run ends."""
        now = time.monotonic()
        if event.run not in self.runs:
            task = self.bars.add_task(event.run, total=event.steps, note="")
            self.runs[event.run] = (task, now, event.token)
        task, since, first = self.runs[event.run]
        note = self._note(event, now - since, event.token - first)
        self.bars.update(task, completed=event.step, note=note)
        if not self.console.is_terminal and now - self.spoke > PLAIN_EVERY_SECONDS:
            self.spoke = now
            self.console.print(f"  {event.run}: step {event.step:,} of {event.steps:,}, {note}", markup=False)
        if event.step == event.steps:
            self.bars.remove_task(task)
            del self.runs[event.run]

    def operations(self, found: Sequence[Operation], most: int = 20) -> None:
        """The operations that took longest in a trace of steps, as a table."""
        table = Table("operation", *(Column(name, justify="right") for name in ("calls", "ms", "share")))
        for each in found[:most]:
            table.add_row(each.name, f"{each.calls:,}", f"{1e3 * each.seconds:,.1f}", f"{each.share:.1%}")
        if rest := found[most:]:
            seconds, share = sum(each.seconds for each in rest), sum(each.share for each in rest)
            table.add_row(f"{len(rest)} others", "", f"{1e3 * seconds:,.1f}", f"{share:.1%}")
        self.console.print(table)

    def _note(self, event: Event, seconds: float, tokens: int) -> str:
        loss = f"loss {event.loss:.3f}"
        if not tokens or seconds <= 0:
            return loss
        rate = tokens / seconds
        left = (event.tokens - event.token) / rate
        mfu = ""
        if self.machine is not None:
            share = rate * event.flops_per_token / self.machine.peak(self.precision, event.threads)
            mfu = f", MFU {share:.0%}"
        return f"{loss}, {rate / 1e3:.1f}k tokens/s{mfu}, {clock(left)} left"


def clock(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
