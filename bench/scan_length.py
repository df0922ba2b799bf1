"""Cost of training each sequence mixer against the length of its sequences: linear for those with a state.

    python bench/scan_length.py [--rounds 7] [--threads 1] [--only gla] [--json]

One sequence of each length through one mixer (128 wide, fp32, forward and backward), all mixers and lengths in turn, so
that the machine's moods fall on all alike. Printed: the median CPU time of each, and the exponent of length that fits
them by least squares in logarithms, with its range over fits that leave one length out. Softmax attention stands beside
them.
"""

from __future__ import annotations

import json as jsonlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from nachim.model import build
from nachim.model.decoder import initialise
from nachim.model.frame import Frame
from nachim.spec import (
    RGLRU,
    Attention,
    Decoder,
    GatedDeltaNet,
    InfiniAttention,
    LinearAttention,
    Mamba,
    Mamba2,
    Mixer,
)

WIDTH = 128
LENGTHS = (512, 1024, 2048, 4096, 8192)
CASES: dict[str, Mixer] = {
    "attention": Attention(n_heads=2, n_kv_heads=2, d_head=64),
    "Mamba": Mamba(d_inner=2 * WIDTH, dt_rank=WIDTH // 16),
    "Mamba-2": Mamba2(n_heads=4, d_state=64),
    "RetNet": LinearAttention(n_heads=2, d_key=64, d_value=128),
    "GLA": LinearAttention(n_heads=2, d_key=32, d_value=64, decay_rank=16),
    "gated DeltaNet": GatedDeltaNet(n_heads=2, n_key_heads=2, d_key=64, d_value=64),
    "RG-LRU": RGLRU(d_rnn=WIDTH, n_blocks=2),
    "Infini-attention": InfiniAttention(n_heads=2, n_kv_heads=2, d_head=64, segment=256),
}


def block_of(part: Mixer) -> nn.Module:
    """A drawn block whose mixer is `part`, without a feed-forward."""
    model = build(Decoder(vocab_size=8, d_model=WIDTH, n_layers=1, attention=part, ffn=None), WIDTH)
    initialise(model, 0)
    return model.blocks[0]


def step_of(block: nn.Module, length: int) -> Callable[[], None]:
    """Forward and backward of one sequence."""
    x_BTD = torch.randn(1, length, WIDTH, requires_grad=True)
    grad_BTD = torch.randn(1, length, WIDTH)
    return lambda: block(x_BTD, Frame((1, length), x_BTD.device)).backward(grad_BTD)


def timed(step: Callable[[], None]) -> float:
    """CPU seconds of one step."""
    began = time.process_time()
    step()
    return time.process_time() - began


def exponent(seconds: dict[int, float]) -> float:
    """The slope of log seconds over log length."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def main(rounds: int = 7, threads: int = 1, only: str = "", json: bool = False) -> None:
    """Time every mixer whose name contains `only` at every length and print the table."""
    torch.set_num_threads(threads)
    names = [name for name in CASES if only.lower() in name.lower()]
    blocks = {name: block_of(CASES[name]) for name in names}
    steps = {(name, length): step_of(blocks[name], length) for name in names for length in LENGTHS}
    for step in steps.values():
        step()
    times = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            times[key].append(timed(step))
    rows = []
    for name in names:
        seconds = {length: statistics.median(times[name, length]) for length in LENGTHS}
        without = [exponent({other: seconds[other] for other in LENGTHS if other != length}) for length in LENGTHS]
        fitted = {"exponent": exponent(seconds), "least": min(without), "most": max(without)}
        rows.append({"mixer": name, "seconds": seconds} | fitted)
    if json:
        print(jsonlib.dumps({"width": WIDTH, "rounds": rounds, "threads": threads, "mixers": rows}))
        return
    table = Table(title=f"ms, forward and backward of one sequence, one mixer {WIDTH} wide")
    for place, head in enumerate(("mixer", *(f"{length:,}" for length in LENGTHS), "exponent", "leave one out")):
        table.add_column(head, justify="right" if place else "left")
    for row in rows:
        cells = (f"{1000 * row['seconds'][length]:.1f}" for length in LENGTHS)
        table.add_row(row["mixer"], *cells, f"{row['exponent']:.3f}", f"{row['least']:.3f}-{row['most']:.3f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    tyro.cli(main)
