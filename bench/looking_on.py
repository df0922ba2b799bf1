"""What statistics cost a run: a step that is sampled beside one that is not, and the share of time at a distance.

    python bench/looking_on.py [--rounds 7] [--rows 16] [--every 20] [--json]

The run is a decoder of 4 layers, 256 wide, with 8,192 words, AdamW, sequences of 512 tokens. Plain and sampled steps
take turns on the same weights; medians of wall time and of CPU-seconds. A run of N steps is sampled every
max(20, N / 500) steps unless it is told otherwise. `file` is what one writing of a whole run's samples costs the thread
that saves, and `frame` what the live view takes twice a second.
"""

from __future__ import annotations

import io
import json as jsonlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from rich.console import Console

from nachim.app.live import FRAMES_PER_SECOND, LiveRun
from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import BPE, WSD, AdamW, Data, Run, Train, plain
from nachim.train.guard import Guard
from nachim.train.statistics import LEAST_EVERY, MOST_SAMPLES, Statistics
from nachim.train.step import Stepper

LENGTH, VOCABULARY = 512, 8192


def run_of(rows: int, d_model: int) -> Run:
    """A run of so many steps that its samples reach their most."""
    model = plain(d_model=d_model, n_layers=4, d_head=64, vocab_size=VOCABULARY)
    data = Data(tokenizer=BPE(vocab_size=VOCABULARY), seq_len=LENGTH)
    batch = rows * LENGTH
    steps = LEAST_EVERY * MOST_SAMPLES
    recipe = Train(tokens=steps * batch, batch_tokens=batch, optimizer=AdamW(lr=1e-3), schedule=WSD())
    return Run(model=model, data=data, train=recipe)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call, all threads counted."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(rounds: int, rows: int, d_model: int, every: int) -> dict[str, object]:
    """Seconds (wall, CPU) of each kind of step, and the shares that follow."""
    run, out = run_of(rows, d_model), Path(tempfile.mkdtemp(prefix="looking-on-"))
    module = build(run.model, run.model.d_model)
    initialise(module, 0)
    stepper, guard = Stepper(run, module, next_token_loss), Guard(1e-3)
    x_BT = torch.randint(VOCABULARY, (rows, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    console = Console(file=io.StringIO(), width=100, color_system="truecolor")
    looking, live = Statistics(1), LiveRun(console, None, 1)
    looking.begin(out, run, 0, print)
    row = {"step": 1, "tokens": rows * LENGTH, "loss": 1.0, "lr": 1e-3, "grad_norm": 1.0}

    def sampled(step: int) -> None:
        looking.before(stepper, step, x_BT)
        stepper.take(step, x_BT, guard)
        looking.after(row)

    found: dict[str, list[tuple[float, float]]] = {"plain": [], "sampled": [], "frame": []}
    live.begin(out, run, 0, print)
    for number in range(rounds + 1):
        times = {
            "plain": timed(lambda: stepper.take(2 * number, x_BT, guard)),  # noqa: B023
            "sampled": timed(lambda: sampled(2 * number + 1)),  # noqa: B023
            "frame": timed(lambda: (live.after(row), console.print(live.frame()))),
        }
        if number:  # the first warms up
            for name, pair in times.items():
                found[name].append(pair)
    live.end()
    looking.rows *= MOST_SAMPLES // (rounds + 1)
    work = looking.saving(1)
    file = timed(work)
    middle = {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in found.items()}
    share = [(middle["sampled"][at] / middle["plain"][at] - 1) / every for at in range(2)]
    shares = {"overhead_wall": share[0], "overhead_cpu": share[1], "view": FRAMES_PER_SECOND * middle["frame"][1]}
    return {"seconds": middle | {"file": file}, "every": every} | shares


def main(rounds: int = 7, rows: int = 16, d_model: int = 256, every: int = LEAST_EVERY, json: bool = False) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    found = measure(rounds, rows, d_model, every)
    if json:
        print(jsonlib.dumps(found))
        return
    print(f"{rows} x {LENGTH} tokens a step, one thread; medians of {rounds}")
    for name, (wall, cpu) in found["seconds"].items():
        print(f"{name:8} {1e3 * wall:9.2f} ms wall {1e3 * cpu:9.2f} ms CPU")
    shares = f"{found['overhead_wall']:.2%} of wall time, {found['overhead_cpu']:.2%} of CPU-seconds"
    print(f"sampled every {found['every']} steps: {shares}; the live view takes {found['view']:.2%} of a core")


if __name__ == "__main__":
    tyro.cli(main)
