"""One run in training, live in the terminal: its loss, its speed, what is saved, and what befell it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nachim.app.view import PLAIN_EVERY_SECONDS, clock
from nachim.spec import Machine, Run
from nachim.train.onlooker import Onlooker

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48
FRAMES_PER_SECOND = 2
SPEED_SECONDS = 20.0
"""The speed shown is that of the last so many seconds."""


class LiveRun(Onlooker):
    """Shows the run it looks on at, redrawn twice a second; plain lines where the console is no terminal."""

    def __init__(self, console: Console, machine: Machine | None, threads: int) -> None:
        self.console, self.machine, self.threads = console, machine, threads
        self.run: Run | None = None
        self.live: Live | None = None
        self.row: Mapping[str, Any] = {}
        self.losses = Trail()
        self.validation = self.event = ""
        self.pace: list[tuple[float, int]] = []
        self.saved: tuple[int, float] | None = None
        self.spoke = time.monotonic()

    def begin(self, out: Path, run: Run, step: int, say: Callable[[str], None]) -> None:
        """Show `run` from `step` on."""
        self.run, self.out, self.first = run, out, step
        self.pace = [(time.monotonic(), run.train.token_at(step))]
        if self.live is None and self.console.is_terminal:
            self.live = Live(console=self.console, refresh_per_second=FRAMES_PER_SECOND, get_renderable=self.frame)
            self.live.start()

    def after(self, row: Mapping[str, Any]) -> None:
        """A step more."""
        now = time.monotonic()
        self.row = row
        self.losses.add(float(row["loss"]))
        self.pace.append((now, row["tokens"]))
        while now - self.pace[0][0] > SPEED_SECONDS and len(self.pace) > 2:
            self.pace.pop(0)
        if row.get("validation_loss") is not None:
            bpb = "" if row.get("bpb") is None else f", {row['bpb']:.4f} bpb"
            apart = [f"{name[4:]} {value:.4f}" for name, value in row.items() if name.startswith("bpb/")]
            each = f" ({', '.join(apart)})" if apart else ""
            self.validation = f"validation {row['validation_loss']:.4f}{bpb}{each} at step {row['step']:,}"
        if self.live is None and now - self.spoke > PLAIN_EVERY_SECONDS:
            self.spoke = now
            self.console.print(f"  step {row['step']:,} of {self.run.train.steps:,}, {self.speed()}", markup=False)

    def saving(self, step: int) -> None:
        """A checkpoint is being written."""
        self.saved = (step, time.monotonic())

    def end(self) -> None:
        """The last frame stays."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def heard(self, text: str) -> None:
        """A sentence worth reading was said."""
        self.event = text

    def speed(self) -> str:
        """Loss, tokens/s, MFU where the machine was measured, and the time left."""
        loss = f"loss {self.row['loss']:.3f}" if self.row else "no step yet"
        (then, before), (now, token) = self.pace[0], self.pace[-1]
        return loss if now <= then or token <= before else f"{loss}, {self._rate((token - before) / (now - then))}"

    def _rate(self, rate: float) -> str:
        run = self.run
        left = clock((run.train.tokens - self.pace[-1][1]) / rate)
        name = f"{run.train.precision}_all"
        if self.machine is None or not hasattr(self.machine, name):
            return f"{rate:,.0f} tokens/s, {left} left"
        work = run.flops_per_token + run.model.head_flops_per_token
        share = rate * work / self.machine.peak(run.train.precision, self.threads)
        return f"{rate:,.0f} tokens/s, MFU {share:.1%}, {left} left"

    def frame(self) -> RenderableType:
        """What stands in the terminal now."""
        run, row = self.run, self.row
        if run is None or not row:
            return Text("waiting for the first step", style="dim")
        step, steps = row["step"], run.train.steps
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", min_width=6, no_wrap=True)
        table.add_column()
        table.add_row("step", f"{step:,} of {steps:,}, {row['tokens']:,} tokens")
        table.add_row("", ProgressBar(total=steps, completed=step, width=WIDTH))
        table.add_row("loss", Text.assemble((sparkline(self.losses.means, WIDTH), "cyan"), f"  {row['loss']:.4f}"))
        if self.validation:
            table.add_row("", self.validation)
        table.add_row("speed", self.speed().partition(", ")[2])
        table.add_row("update", self._update())
        table.add_row("saved", self._saved())
        if self.event:
            table.add_row("last", Text(self.event, style="yellow"))
        return Group(table)

    def _update(self) -> str:
        row = self.row
        said = f"learning rate {row['lr']:.3g}, gradient norm {row['grad_norm']:.3g}"
        if row.get("noise_tokens") is not None:
            said += f", noise scale {row['noise_tokens']:,.0f} tokens"
        return said + (f", imbalance {row['imbalance']:.2f}" if row.get("imbalance") is not None else "")

    def _saved(self) -> str:
        if self.saved is None:
            return "no checkpoint in this sitting yet" if self.first == 0 else f"checkpoint of step {self.first:,}"
        step, then = self.saved
        return f"checkpoint of step {step:,}, {clock(time.monotonic() - then)} ago"


class Trail:
    """A series of any length as at most `2 * WIDTH` means of equal stretches."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self.stretch, self.taken, self.sum = 1, 0, 0.0

    def add(self, value: float) -> None:
        """A value more; one that is not finite is passed over."""
        if not math.isfinite(value):
            return
        self.taken, self.sum = self.taken + 1, self.sum + value
        if self.taken < self.stretch:
            return
        self.means.append(self.sum / self.taken)
        self.taken, self.sum = 0, 0.0
        if len(self.means) == 2 * WIDTH:
            self.means = [(one + other) / 2 for one, other in zip(self.means[::2], self.means[1::2], strict=True)]
            self.stretch *= 2


def sparkline(values: list[float], width: int) -> str:
    """`values` in at most `width` characters: means of equal stretches, the highest tenth cut so that others show."""
    if not values:
        return ""
    size = max(1, math.ceil(len(values) / width))
    means = [sum(values[at : at + size]) / len(values[at : at + size]) for at in range(0, len(values), size)]
    low, high = min(means), sorted(means)[int(0.9 * (len(means) - 1))]
    reach = (high - low) or 1.0
    return "".join(BARS[min(7, int(8 * max(0.0, value - low) / reach))] for value in means)
