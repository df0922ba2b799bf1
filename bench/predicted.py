"""What the planner predicts of training runs beside what they take: FLOP, peak memory, seconds of a step.

    python bench/predicted.py [--device cuda] [--threads 1] [--rounds 9] [--json] [--page docs/predicted.md]

Everything is predicted before the first run. FLOP and memory come from the declared costs alone. Seconds, on a CPU,
come from the rates that `nachim measure` finds with steps of other sizes (`nachim.budget.step_cost`): no width and
batch below is among them. Beside them stand two others, for comparison: what the study uses (time a token of
five widths at one batch, interpolated) and the roofline over measured peaks. On a GPU seconds come from that roofline.
Runs are of the trainer's own steps, eager, on random tokens; those on a CPU take turns, and medians are compared.
"""

from __future__ import annotations

import dataclasses
import gc
import json as jsonlib
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nachim.budget.layout import Job, Layout, Optimizer
from nachim.budget.memory import memory
from nachim.budget.shape import shape
from nachim.budget.step_cost import orthogonal_flops
from nachim.budget.time import step_time
from nachim.lab.speed import measure_step_cost, measure_throughput, run_of, step_seconds, stepping
from nachim.lab.study import PACE_SECONDS, PACE_WIDTHS
from nachim.lab.work import Place
from nachim.spec import Cluster, Device
from nachim.train.machine import device_name
from nachim.train.measure import measure_device
from nachim.train.peak import peak_bytes
from nachim.train.rates import cores, on_threads

VOCAB, SEQ_LEN = {"cpu": 512, "cuda": 32_768}, {"cpu": 128, "cuda": 2048}
CASES: dict[str, tuple[tuple[int, int, Optimizer], ...]] = {
    "cpu": (
        (32, 1024, "muon"),
        (40, 512, "adamw"),
        (48, 4096, "muon"),
        (64, 1024, "adamw"),
        (80, 512, "muon"),
        (80, 2048, "adamw"),
        (96, 1024, "muon"),
        (96, 4096, "adamw"),
        (112, 1024, "adamw"),
        (128, 1024, "muon"),
        (160, 512, "muon"),
        (160, 2048, "adamw"),
        (192, 1024, "adamw"),
        (224, 512, "muon"),
        (256, 1024, "adamw"),
    ),
    "cuda": (
        (512, 16_384, "adamw"),
        (768, 16_384, "muon"),
        (1024, 16_384, "adamw"),
        (1280, 8192, "muon"),
        (1536, 8192, "adamw"),
    ),
}
"""Widths of the family, tokens of a batch, optimizers: on a CPU sizes of a ladder, on a GPU 0.1 to 1 B parameters."""
PACE_BATCH = 512
STEP_SECONDS = 12.0
Kind = Literal["cpu", "cuda"]
Row = dict[str, Any]


def job_of(kind: Kind, width: int, batch: int, optimizer: Optimizer) -> Job:
    """The job of one case."""
    precision: Literal["fp32", "bf16"] = "fp32" if kind == "cpu" else "bf16"
    model = shape(width, VOCAB[kind])
    return Job(model=model, seq_len=SEQ_LEN[kind], batch_tokens=batch, optimizer=optimizer, precision=precision)


def whole(job: Job) -> Layout:
    """One device that takes the whole batch at once."""
    return Layout(micro_batch=job.batch)


def declared_flops(job: Job) -> float:
    """Declared FLOP of a step: M and the head for every token, and what Muon does to its matrices."""
    per_token = job.model.flops_per_token(job.seq_len) + job.model.head_flops_per_token
    return job.batch * job.seq_len * per_token + (orthogonal_flops(job.model) if job.optimizer == "muon" else 0)


def counted_flops(job: Job, kind: Kind) -> int:
    """FLOP that torch counts in a real step, with attention by plain products: it counts no CPU kernel of attention."""
    step = stepping(run_of(job), kind)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measured_peak(job: Job, kind: Kind) -> int:
    """Most bytes that tensors hold while the model is built and takes two steps: the second has optimizer state."""

    def work() -> None:
        step = stepping(run_of(job), kind)
        for _ in range(2):
            step()

    return peak_bytes(work, kind)


def device_here(kind: Kind, threads: int) -> Device:
    """This machine as measured, on `threads` threads."""
    found = measure_device(Path.cwd(), kind, say)
    if kind == "cuda":
        return found.device
    best = {
        precision: max(rate for (count, _, name), rate in found.matmul.items() if (count, name) == (threads, precision))
        for precision in ("fp32", "bf16")
    }
    return dataclasses.replace(
        found.device,
        fp32_flops=best["fp32"],
        bf16_flops=best["bf16"],
        memory_bandwidth=found.bandwidth[threads],
    )


def predicted_seconds(jobs: Sequence[Job], kind: Kind, threads: int) -> dict[str, list[float]]:
    """Seconds of a step of every job, by predictor: the first is the one that counts."""
    cluster = Cluster(device=device_here(kind, threads))
    roofline = [step_time(job, whole(job), cluster, fused=False).seconds for job in jobs]
    if kind == "cuda":
        return {"roofline": roofline}
    say("steps of other sizes")
    steps = measure_step_cost(threads, STEP_SECONDS)
    say("the study's pace")
    runs = [run_of(job_of(kind, width, PACE_BATCH, "muon")) for width in PACE_WIDTHS]
    pace = measure_throughput(runs, Place(cache=Path(os.devnull), threads=threads), 1, PACE_SECONDS)
    return {
        "steps": [steps.seconds(job) for job in jobs],
        "pace": [pace.seconds_per_token(job.model, job.seq_len) * job.batch * job.seq_len for job in jobs],
        "roofline": roofline,
    }


def measured_seconds(jobs: Sequence[Job], kind: Kind, threads: int, rounds: int) -> Iterator[float]:
    """Median seconds of a step of every job. On a CPU the jobs take turns; GPUs have not the memory, and less noise."""
    groups = [list(jobs)] if kind == "cpu" else [[job] for job in jobs]
    for group in groups:
        with on_threads(threads):
            steps = [stepping(run_of(job), kind) for job in group]
            times = step_seconds(steps, 0.0, rounds)
        yield from map(statistics.median, times)
        del steps
        gc.collect()


def compare(kind: Kind, threads: int, rounds: int) -> list[Row]:
    """Predicted and measured, a row a case; errors are predicted over measured, less one."""
    jobs = [job_of(kind, *case) for case in CASES[kind]]
    seconds = predicted_seconds(jobs, kind, threads)
    rows: list[Row] = []
    for job in jobs:
        say(f"FLOP and memory of width {job.model.d_model}")
        # Plain attention keeps its scores: on a GPU one sequence of them is enough.
        counted = job if kind == "cpu" else dataclasses.replace(job, batch_tokens=job.seq_len)
        room = memory(job, whole(job), kind)
        row = {
            "shape": f"{job.model.n_layers} x {job.model.d_model}",
            "params": job.model.params_total,
            "batch_tokens": job.batch_tokens,
            "optimizer": job.optimizer,
            "flops": {"predicted": declared_flops(counted), "measured": counted_flops(counted, kind)},
            # Gaps between tensors are none of the bytes that tensors hold, which is what is measured.
            "memory": {"predicted": room.total - room.fragmentation, "measured": measured_peak(job, kind)},
        }
        rows.append(row)
        gc.collect()
    say("seconds of the runs")
    for i, (row, measured) in enumerate(zip(rows, measured_seconds(jobs, kind, threads, rounds), strict=True)):
        for name, predicted in seconds.items():
            row[f"seconds by {name}"] = {"predicted": predicted[i], "measured": measured}
    for row in rows:
        for value in row.values():
            if isinstance(value, dict):
                value["error"] = value["predicted"] / value["measured"] - 1
    return rows


def medians(rows: Sequence[Row]) -> dict[str, float]:
    """Median of the absolute errors, by quantity."""
    names = [name for name, value in rows[0].items() if isinstance(value, dict)]
    return {name: statistics.median(abs(row[name]["error"]) for row in rows) for name in names}


def markdown(rows: Sequence[Row]) -> str:
    """The table: for a terminal and for the documentation."""
    names = list(medians(rows))
    extra = names[3:]
    heads = [
        "layers x width",
        "parameters",
        "batch",
        "optimizer",
        "GFLOP",
        "counted",
        "error",
        "MB",
        "measured",
        "error",
    ]
    heads += ["ms", "measured", "error", *(f"error {name.removeprefix('seconds ')}" for name in extra)]
    cells = [heads, ["---:"] * len(heads)]
    for row in rows:
        line = [row["shape"], f"{row['params']:,}", f"{row['batch_tokens']:,}", row["optimizer"]]
        for name, unit, form in zip(names, (1e9, 1e6, 1e-3), (".3f", ".2f", ".2f"), strict=False):
            line += [format(row[name][which] / unit, form) for which in ("predicted", "measured")]
            line.append(f"{100 * row[name]['error']:+.1f} %")
        cells.append(line + [f"{100 * row[name]['error']:+.1f} %" for name in extra])
    found = [f"{100 * value:.1f} %" for value in medians(rows).values()]
    last = ["median of absolute errors", "", "", "", "", "", found[0], "", "", found[1], "", "", found[2], *found[3:]]
    cells.append(last)
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return "\n".join(
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    )


def say(what: str) -> None:
    """Progress, apart from the result."""
    print(f"measuring {what}", file=sys.stderr, flush=True)


def circumstances(kind: Kind, threads: int, rounds: int) -> str:
    """On what, with what, and how busy it was."""
    where = f"{device_name(kind)}, {cores()} cores" if kind == "cpu" else device_name(kind)
    return (
        f"{where}; {threads} thread{'s' * (threads > 1)}; {rounds} rounds; length {SEQ_LEN[kind]}, vocabulary "
        f"{VOCAB[kind]:,}; torch {torch.__version__}, Python {platform.python_version()}; load average when it began "
        f"{os.getloadavg()[0]:.2f}"
    )


def main(device: Kind = "cpu", threads: int = 1, rounds: int = 9, json: bool = False, page: Path | None = None) -> None:
    """Predict, run, compare. `page` is a document whose text after the heading "## Measured" is replaced."""
    where = circumstances(device, threads, rounds)
    rows = compare(device, threads, rounds)
    if json:
        print(jsonlib.dumps({"circumstances": where, "medians": medians(rows), "runs": rows}))
        return
    command = " ".join(["python", *sys.argv])
    text = f"`{command}` on {where}.\n\n{markdown(rows)}\n"
    print(text)
    if page:
        head = page.read_text(encoding="utf-8").partition("## Measured")[0]
        page.write_text(f"{head}## Measured\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
