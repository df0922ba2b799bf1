"""Training steps beside others' on this machine's CPU: speed, peak memory, and the share of its matmul peak.

    python bench/train.py [--shape 5m] [--nanogpt DIR] [--nanochat DIR] [--rounds 5] [--only NAME ...] [--json]

DIR is a checkout or a bare clone of github.com/karpathy/nanoGPT and /nanochat; transformers and accelerate are timed
where they can be imported; whoever is missing is named, with the reason. Sides take turns on the same batch of random
tokens; medians of CPU-seconds, all threads counted, and of wall time are shown. Every side multiplies the same matrices
(12 d_model^2 a layer, one head) but for details of its own; ours and transformers' Llama are the same decoder. Peak
memory is what a side's tensors hold at most, from its making to its second step. MFU counts attention over the whole
context, and is held against a core's fastest matmul of any precision, measured in the same run.
"""

from __future__ import annotations

import json as jsonlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from _train_peers import Case, Make, Side, count, peers
from rich.console import Console
from rich.table import Table

from nachim.data.pack import Batches
from nachim.data.prepared import Prepared
from nachim.lab.work import next_token_loss
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import BPE, WSD, AdamW, Data, Decoder, Run, Train, plain
from nachim.train.guard import Guard
from nachim.train.machine import measure_machine
from nachim.train.peak import peak_bytes
from nachim.train.step import Stepper

SHAPES = {
    "5m": Case(256, 4, 64, 8, 512, 8192),
    "30m": Case(512, 8, 64, 4, 512, 8192),
    "2x32": Case(32, 2, 16, 8, 128, 512),
    "2x48": Case(48, 2, 16, 8, 128, 512),
    "3x64": Case(64, 3, 16, 8, 128, 512),
    "4x96": Case(96, 4, 16, 8, 128, 512),
    "5x128": Case(128, 5, 32, 8, 128, 512),
    "8x256": Case(256, 8, 32, 8, 128, 512),
}
"""The two that are compared with others, and those of ladders."""
Shape = Literal["5m", "30m", "2x32", "2x48", "3x64", "4x96", "5x128", "8x256"]
Seconds = tuple[float, float]


def decoder(case: Case) -> Decoder:
    """The plain decoder of a case, its head tied."""
    model = plain(d_model=case.d_model, n_layers=case.n_layers, d_head=case.d_head, vocab_size=case.vocab_size)
    return replace(model, tied=True)


def ours(precision: Literal["fp32", "bf16"]) -> Make:
    """Steps of our loop's own stepper."""

    def make(case: Case) -> Side:
        model = decoder(case)
        data = Data(tokenizer=BPE(vocab_size=case.vocab_size), seq_len=case.seq_len)
        tokens = case.tokens * 10_000
        train = Train(
            tokens=tokens, batch_tokens=case.tokens, optimizer=AdamW(lr=1e-3), schedule=WSD(), precision=precision
        )
        module = build(model, model.d_model)
        initialise(module, 0)
        stepper, guard = Stepper(Run(model=model, data=data, train=train), module, next_token_loss), Guard(1e-3)
        x_BT = case.sequences()
        return Side(lambda: stepper.take(0, x_BT, guard), count(module))

    return make


def timed(work: Callable[[], object]) -> Seconds:
    """CPU and wall seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def made(make: Make, case: Case) -> tuple[Side, int]:
    """A side that has taken two steps, and the most bytes it held."""
    sides: list[Side] = []

    def work() -> None:
        sides.append(make(case))
        sides[0].step()
        sides[0].step()

    held = peak_bytes(work)
    return sides[0], held if sides[0].whole is None else peak_bytes(sides[0].whole)


def loader_seconds(case: Case, rounds: int) -> float:
    """CPU-seconds of reading one step's batch from a prepared corpus, as training does."""
    tokens = np.random.default_rng(0).integers(case.vocab_size, size=4_000_000).astype(np.uint16)
    prepared = Prepared(Path(), {}, None, None, tokens, tokens, np.zeros(1, int), np.zeros(1, int))
    batches = Batches(prepared, Data(tokenizer=BPE(vocab_size=case.vocab_size), seq_len=case.seq_len))
    return statistics.median(
        timed(lambda first=i * case.batch: batches.batch(first, case.batch))[0] for i in range(20 * rounds)
    )


def measure(case: Case, sides: dict[str, Make], rounds: int) -> dict[str, dict[str, float]]:
    """What every side does: tokens a CPU-second and a second of wall time, peak bytes, parameters."""
    ready: dict[str, Side] = {}
    held: dict[str, int] = {}
    for name, make in sides.items():
        print(f"making {name}", file=sys.stderr)
        ready[name], held[name] = made(make, case)
        print(f"{name} held {held[name] / 2**20:,.0f} MiB", file=sys.stderr)
    found: dict[str, list[Seconds]] = {name: [] for name in ready}
    for number in range(rounds):
        for name, side in ready.items():
            found[name].append(timed(side.step))
            rate = case.tokens / found[name][-1][0]
            print(f"round {number + 1} of {rounds}: {name}, {rate:,.0f} tokens/core-s", file=sys.stderr)
    return {
        name: {
            "tokens_per_core_second": case.tokens / statistics.median(cpu for cpu, _ in pairs),
            "tokens_per_second": case.tokens / statistics.median(wall for _, wall in pairs),
            "fastest_tokens_per_core_second": case.tokens / min(cpu for cpu, _ in pairs),
            "peak_bytes": held[name],
            "parameters": ready[name].parameters,
        }
        for name, pairs in found.items()
    }


def main(
    shape: Shape = "5m",
    nanogpt: Path | None = None,
    nanochat: Path | None = None,
    rounds: int = 5,
    threads: int = 1,
    only: tuple[str, ...] = (),
    json: bool = False,
) -> None:
    """Time all sides in turn, or `only` those peers besides ours, and print the table."""
    torch.set_num_threads(threads)
    case, load = SHAPES[shape], os.getloadavg()[0]
    machine = measure_machine()
    peaks = {precision: machine.peak(precision, threads) / threads for precision in ("fp32", "bf16")}
    known = {name: how for name, how in peers(nanogpt, nanochat) if not only or name in only}
    missing = {name: why for name, why in known.items() if isinstance(why, str)}
    mine = {"ours, fp32": ours("fp32"), "ours, bf16": ours("bf16")}
    found = measure(case, mine | {name: make for name, make in known.items() if name not in missing}, rounds)
    variants = {name.removeprefix("ours, "): found.pop(name) for name in mine}
    best = max(variants, key=lambda name: variants[name]["tokens_per_core_second"])
    model, rate = decoder(case), variants[best]["tokens_per_core_second"]
    flops = model.flops_per_token(case.seq_len) + model.head_flops_per_token
    report: dict[str, Any] = {
        "shape": {"name": shape, **vars(case)},
        "ours": {"precision": best, **variants[best]},
        "variants": variants,
        "peers": found,
        "missing": missing,
        "ratios": {name: rate / peer["tokens_per_core_second"] for name, peer in found.items()},
        "mfu": flops * rate / max(peaks.values()),
        "matmul_peak": max(peaks.values()),
        "matmul_peaks": peaks,
        "most_tokens_per_core_second": max(peaks.values()) / flops,
        "data_wait": loader_seconds(case, rounds) * rate / case.tokens,
        "machine": machine.name,
        "threads": threads,
        "load": load,
    }
    print(jsonlib.dumps(report)) if json else show(report)


def show(report: dict[str, Any]) -> None:
    """The table, and a line on what the machine could do at most."""
    shape, peaks = report["shape"], report["matmul_peaks"]
    table = Table(
        title=f"{shape['name']}: {shape['n_layers']} x {shape['d_model']}, {shape['batch']} x {shape['seq_len']}"
    )
    for name in ("", "tokens/core-s", "tokens/s", "ours over it", "peak MiB", "M parameters"):
        table.add_column(name, justify="right" if name else "left")
    rows = {f"ours, {name}": row for name, row in report["variants"].items()} | report["peers"]
    for name, row in rows.items():
        ratio = report["ours"]["tokens_per_core_second"] / row["tokens_per_core_second"]
        speed = (f"{row['tokens_per_core_second']:,.0f}", f"{row['tokens_per_second']:,.0f}", f"{ratio:.2f}")
        table.add_row(name, *speed, f"{row['peak_bytes'] / 2**20:,.0f}", f"{row['parameters'] / 1e6:.2f}")
    console = Console(width=110)
    console.print(table)
    told = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in peaks.items())
    console.print(
        f"MFU {report['mfu']:.0%}; matmul peak of a core, GFLOP/s: {told}; at that peak and nothing else a step would "
        f"give {report['most_tokens_per_core_second']:,.0f} tokens/core-s. "
        f"Reading a batch takes {report['data_wait']:.3%} of a step. Load average at the start {report['load']:.1f}."
    )
    for name, why in report["missing"].items():
        console.print(f"{name} is left out: {why}")


if __name__ == "__main__":
    tyro.cli(main)
