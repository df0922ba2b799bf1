"""Peak memory of real training steps, predicted and measured, for the ladder's family on this CPU.

    python bench/predicted_memory.py [--vocab-size 512] [--threads 1]

The measured side builds the model and takes two steps of our own stepper on random tokens; every allocation and release
of torch's allocator is added up. Prints both sides and the error of each configuration, the median and the worst.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported: the profiler says when it starts

import torch
import tyro
from rich.console import Console
from rich.table import Table

from nachim.budget.layout import Job, Layout
from nachim.budget.memory import memory
from nachim.budget.shape import shape
from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.model.recompute import arrange
from nachim.spec import BPE, MTP, WSD, Activations, AdamW, Data, Decoder, Muon, Run, Train
from nachim.train.guard import Guard
from nachim.train.peak import peak_bytes
from nachim.train.step import Stepper


@dataclass(frozen=True)
class Case:
    """One configuration: `rows` sequences of `seq_len` pass at a time, `times` times a step; with `further` modules for
    multi-token prediction."""

    width: int
    seq_len: int
    rows: int
    optimizer: Literal["adamw", "muon"] = "adamw"
    precision: Literal["fp32", "bf16"] = "fp32"
    times: int = 1
    activations: Activations = Activations()
    further: int = 0

    def model(self, vocab_size: int) -> Decoder:
        """What is trained."""
        return replace(shape(self.width, vocab_size), mtp=MTP(depth=self.further) if self.further else None)


FULL, PAIRS = Activations(recompute="full"), Activations(recompute="full", every_blocks=2)
SELECTIVE = Activations(recompute="selective")
CASES = (
    Case(32, 128, 1),
    Case(32, 256, 8),
    Case(32, 512, 2, "muon", "bf16"),
    Case(64, 128, 16, "adamw", "bf16"),
    Case(64, 512, 4, "muon"),
    Case(64, 128, 1, "muon", "bf16"),
    Case(96, 256, 2, "adamw", "fp32", 4),
    Case(96, 512, 8, "muon", "fp32", 2),
    Case(128, 128, 1, "adamw", "bf16"),
    Case(128, 256, 4, "adamw", "bf16", 2),
    Case(128, 256, 4, "muon", "bf16"),
    Case(128, 512, 1, "muon", "fp32", 2),
    Case(192, 512, 2, "muon"),
    Case(256, 128, 1),
    Case(256, 128, 1, "muon"),
    Case(256, 128, 1, "adamw", "bf16", 3),
    Case(256, 128, 4, "adamw", "bf16"),
    Case(256, 256, 2, "muon", "bf16", 2),
    Case(128, 256, 4, activations=FULL),
    Case(128, 512, 2, "muon", "bf16", activations=FULL),
    Case(256, 256, 4, "adamw", "bf16", 2, FULL),
    Case(192, 512, 4, activations=PAIRS),
    Case(256, 256, 4, "adamw", "bf16", activations=PAIRS),
    Case(128, 256, 4, activations=SELECTIVE),
    Case(192, 512, 4, "adamw", "bf16", activations=SELECTIVE),
    Case(256, 256, 4, "adamw", "fp32", 2, SELECTIVE),
    Case(192, 512, 4, activations=Activations(keep_bytes=60_000_000)),
    Case(192, 512, 4, "adamw", "bf16", activations=Activations(keep_bytes=20_000_000)),
    Case(256, 256, 4, "adamw", "bf16", activations=Activations(keep_bytes=12_000_000)),
    Case(64, 256, 4, further=1),
    Case(128, 256, 4, "muon", "bf16", 2, further=1),
    Case(192, 512, 4, activations=FULL, further=1),
    Case(256, 128, 1, further=2),
    Case(128, 256, 4, "adamw", "bf16", activations=SELECTIVE, further=2),
)


def steps(case: Case, vocab_size: int) -> Callable[[], None]:
    """Two steps of `case`, everything they need included: the second finds the optimizer's state there."""
    model = case.model(vocab_size)
    micro = case.rows * case.seq_len
    optimizer = AdamW(lr=1e-3) if case.optimizer == "adamw" else Muon(lr=1e-3)
    train = Train(
        tokens=2 * micro * case.times,
        batch_tokens=micro * case.times,
        optimizer=optimizer,
        schedule=WSD(),
        precision=case.precision,
        micro_batch_tokens=micro,
    )
    run = Run(model=model, data=Data(tokenizer=BPE(vocab_size=vocab_size), seq_len=case.seq_len), train=train)
    x_BT = torch.randint(vocab_size, (case.rows * case.times, case.seq_len + 1))

    def take() -> None:
        module = build(model, model.d_model)
        initialise(module, 0)
        if case.activations != Activations():
            arrange(module, case.activations, case.rows, case.seq_len, case.precision)
        stepper, guard = Stepper(run, module, next_token_loss), Guard(1e-3)
        for step in range(2):
            stepper.take(step, x_BT, guard)

    return take


def again(activations: Activations) -> str:
    """What is made again, in a word."""
    if activations.keep_bytes is not None:
        return f"to {activations.keep_bytes / 1e6:.0f} MB"
    every = activations.every_blocks
    return activations.recompute + f" by {every}" * (every > 1)


def main(vocab_size: int = 512, threads: int = 1) -> None:
    """Measure every case and print the table."""
    torch.set_num_threads(threads)
    table = Table(title=f"peak tensor memory, vocabulary {vocab_size}, torch {torch.__version__} on CPU")
    for name in (
        "layers x width",
        "batch",
        "optimizer",
        "precision",
        "made again",
        "fullest at",
        "predicted",
        "measured",
        "error",
    ):
        table.add_column(name, justify="right")
    errors = []
    for case in CASES:
        model = case.model(vocab_size)
        batch = case.seq_len * case.rows * case.times
        job = Job(
            model=model,
            seq_len=case.seq_len,
            batch_tokens=batch,
            optimizer=case.optimizer,
            precision=case.precision,
        )
        predicted = memory(job, Layout(micro_batch=case.rows), "cpu", case.activations)
        measured = peak_bytes(steps(case, vocab_size))
        errors.append(predicted.total / measured - 1)
        table.add_row(
            f"{model.n_layers} x {case.width}" + f" + {case.further}" * (case.further > 0),
            f"{case.times} x {case.rows} x {case.seq_len}",
            case.optimizer,
            case.precision,
            again(case.activations),
            predicted.moment,
            f"{predicted.total / 1e6:.2f} MB",
            f"{measured / 1e6:.2f} MB",
            f"{errors[-1]:+.2%}",
        )
    console = Console(width=130)
    console.print(table)
    sizes = sorted(abs(error) for error in errors)
    console.print(f"{len(sizes)} configurations: median error {statistics.median(sizes):.2%}, worst {sizes[-1]:.2%}")


if __name__ == "__main__":
    tyro.cli(main)
