"""What making activations again saves and costs: peak memory, predicted and measured, and CPU-seconds of a step.

    python bench/recompute.py [--width 128] [--rows 4] [--seq-len 256] [--rounds 5]

One model of the ladder's family in fp32, AdamW. Memory is that of two steps, every allocation of torch counted. Steps
whose CPU-seconds are compared are taken in turn, the same batch by each way, and the gradients' norms must be equal.
"""

from __future__ import annotations

import os
import statistics
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported: the profiler says when it starts

import torch
import tyro
from rich.console import Console
from rich.table import Table

from nachim.budget.activations import kept
from nachim.budget.layout import Job, Layout
from nachim.budget.memory import memory
from nachim.budget.shape import shape
from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.model.recompute import arrange
from nachim.spec import BPE, WSD, Activations, AdamW, Data, Run, Train
from nachim.train.guard import Guard
from nachim.train.peak import peak_bytes
from nachim.train.step import Stepper

VOCABULARY = 512


def stepper_of(width: int, rows: int, seq_len: int, activations: Activations) -> Stepper:
    """A fresh stepper whose model passes through its blocks so."""
    tokens = rows * seq_len
    train = Train(tokens=100 * tokens, batch_tokens=tokens, optimizer=AdamW(lr=1e-3), schedule=WSD())
    spec = shape(width, VOCABULARY)
    run = Run(model=spec, data=Data(tokenizer=BPE(vocab_size=VOCABULARY), seq_len=seq_len), train=train)
    model = build(spec, width)
    initialise(model, 0)
    if activations != Activations():
        arrange(model, activations, rows, seq_len, "fp32")
    return Stepper(run, model, next_token_loss)


def main(width: int = 128, rows: int = 4, seq_len: int = 256, rounds: int = 5) -> None:
    """Measure every way and print the table."""
    torch.set_num_threads(1)
    spec, layout = shape(width, VOCABULARY), Layout(micro_batch=rows)
    job = Job(model=spec, seq_len=seq_len, batch_tokens=rows * seq_len, precision="fp32")
    everything = sum(kept(block, job, layout, "cpu").stored for block in spec.blocks)
    ways = {
        "all kept": Activations(),
        "selective": Activations(recompute="selective"),
        "full": Activations(recompute="full"),
        "full, by 2": Activations(recompute="full", every_blocks=2),
        "to a half": Activations(keep_bytes=round(everything / 2)),
        "to a fifth": Activations(keep_bytes=round(everything / 5)),
    }
    x_BT = torch.randint(VOCABULARY, (rows, seq_len + 1))
    peaks = {}
    for name, way in ways.items():

        def work(way: Activations = way) -> None:
            stepper = stepper_of(width, rows, seq_len, way)
            for step in range(2):
                stepper.take(step, x_BT, Guard(1e-3))

        peaks[name] = memory(job, layout, "cpu", way).total, peak_bytes(work)
    steppers = {name: stepper_of(width, rows, seq_len, way) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(1 + rounds):
        norms = set()
        for name, stepper in steppers.items():
            began = time.process_time()
            norms.add(stepper.take(step, x_BT, Guard(1e-3)).grad_norm)
            seconds[name] += [time.process_time() - began] * (step > 0)
        assert len(norms) == 1, norms
    table = Table(title=f"{spec.n_layers} x {width}, {rows} x {seq_len} tokens, fp32, 1 thread")
    for column in ("", "predicted", "measured", "error", "of all kept", "CPU-seconds a step, of all kept"):
        table.add_column(column, justify="right")
    for name, (predicted, measured) in peaks.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["all kept"], strict=True))
        table.add_row(
            name,
            f"{predicted / 1e6:.1f} MB",
            f"{measured / 1e6:.1f} MB",
            f"{predicted / measured - 1:+.1%}",
            f"{measured / peaks['all kept'][1]:.2f}",
            f"{ratio:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    tyro.cli(main)
