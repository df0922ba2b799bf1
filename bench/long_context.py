"""The most memory a process takes that trains 5 million parameters on one sequence of 8,192 tokens, and its time.

    python bench/long_context.py [--seq-len 8192] [--threads 1] [--json]

Each row is a process of its own: two steps of our own stepper on random tokens, AdamW, after which it tells the peak of
its resident memory (interpreter and libraries included) and the seconds of the second step. Beside it stands what the
planner predicts of tensors alone.
"""

from __future__ import annotations

import json as jsonlib
import resource
import subprocess
import sys
import time
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from nachim.budget.layout import Job, Layout
from nachim.budget.memory import memory
from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.model.recompute import arrange
from nachim.spec import BPE, WSD, Activations, AdamW, Attention, Data, Decoder, Run, SwiGLU, Train
from nachim.train.guard import Guard
from nachim.train.step import Stepper

MODEL = Decoder(
    vocab_size=8192,
    d_model=256,
    n_layers=4,
    attention=Attention(n_heads=4, n_kv_heads=4, d_head=64),
    ffn=SwiGLU(d_ff=688),
    tied=True,
)
ROWS = {
    "fp32": ("fp32", Activations()),
    "bf16": ("bf16", Activations()),
    "bf16, selective": ("bf16", Activations(recompute="selective")),
    "bf16, full": ("bf16", Activations(recompute="full")),
}
LIMIT = 6 * 2**30


def measured(name: str, seq_len: int, threads: int) -> dict[str, float]:
    """Peak resident bytes of this process after two steps, and seconds of the second."""
    torch.set_num_threads(threads)
    precision, activations = ROWS[name]
    train: Any = {"tokens": 2 * seq_len, "batch_tokens": seq_len, "schedule": WSD(), "precision": precision}
    data = Data(tokenizer=BPE(vocab_size=MODEL.vocab_size), seq_len=seq_len)
    run = Run(model=MODEL, data=data, train=Train(optimizer=AdamW(lr=1e-3), **train))
    model = build(MODEL, MODEL.d_model)
    initialise(model, 0)
    if activations != Activations():
        arrange(model, activations, 1, seq_len, precision)
    stepper, guard, x_BT = Stepper(run, model, next_token_loss), Guard(1e-3), torch.randint(8192, (1, seq_len + 1))
    stepper.take(0, x_BT, guard)
    began = time.perf_counter()
    stepper.take(1, x_BT, guard)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_bytes": peak, "seconds": time.perf_counter() - began}


def child(name: str, seq_len: int, threads: int) -> dict[str, float]:
    """`measured`, in a process of its own."""
    command = [sys.executable, __file__, "--row", name, "--seq-len", str(seq_len), "--threads", str(threads)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return jsonlib.loads(said.splitlines()[-1])


def main(seq_len: int = 8192, threads: int = 1, row: str | None = None, json: bool = False) -> None:
    """Measure every row, or in a child one of them."""
    if row is not None:
        print(jsonlib.dumps(measured(row, seq_len, threads)))
        return
    found: dict[str, dict[str, float]] = {}
    for name, (precision, activations) in ROWS.items():
        job = Job(
            model=MODEL, seq_len=seq_len, batch_tokens=seq_len, precision="fp32" if precision == "fp32" else "bf16"
        )
        found[name] = child(name, seq_len, threads) | {
            "predicted_bytes": memory(job, Layout(), "cpu", activations).total
        }
    if json:
        print(jsonlib.dumps({"params": MODEL.params_total, "seq_len": seq_len, "limit_bytes": LIMIT, "rows": found}))
        return
    table = Table(title=f"{MODEL.params_total:,} parameters, one sequence of {seq_len:,}, {threads} threads")
    for column in ("", "peak of the process", "tensors, predicted", "seconds a step"):
        table.add_column(column, justify="right")
    for name, one in found.items():
        sizes = (f"{one[key] / 2**30:.2f} GiB" for key in ("peak_bytes", "predicted_bytes"))
        table.add_row(name, *sizes, f"{one['seconds']:.1f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    tyro.cli(main)
