"""Measuring how fast this machine trains, before anything is planned."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from nachim.budget.layout import Job, Optimizer
from nachim.budget.shape import shape
from nachim.budget.step_cost import StepCost, fit_step_cost
from nachim.budget.throughput import Throughput
from nachim.lab.work import Place, next_token_loss, settle
from nachim.model import build, fused, native
from nachim.model.decoder import initialise
from nachim.spec import BPE, WSD, AdamW, AdamW8, Data, Muon, Run, ScheduleFreeAdamW, Train
from nachim.train.guard import Guard
from nachim.train.rates import cores, on_threads
from nachim.train.step import Stepper, StepStats

WARM_STEPS = 2
STEP_POINTS: tuple[tuple[int, int, int, Optimizer, int], ...] = (
    (32, 512, 128, "adamw", 512),
    (32, 4096, 128, "muon", 512),
    (32, 2048, 512, "adamw", 512),
    (32, 2048, 128, "muon", 2048),
    (64, 512, 128, "muon", 512),
    (64, 2048, 128, "adamw", 512),
    (64, 1024, 128, "adamw", 4096),
    (128, 512, 128, "adamw", 512),
    (128, 512, 128, "muon", 512),
    (128, 2048, 512, "adamw", 512),
    (128, 2048, 128, "muon", 512),
    (256, 512, 128, "adamw", 512),
    (256, 512, 128, "muon", 512),
    (256, 2048, 128, "adamw", 512),
)
"""Widths of the family, tokens of a batch, lengths, optimizers and vocabularies that tell the works of a step apart."""
LARGE = 1e11
"""FLOP of a pass that every core shortens: about a second of one core."""


def measure_throughput(runs: Sequence[Run], place: Place, workers: int, seconds: float) -> Throughput:
    """Seconds a token of the models of `runs`, `seconds` spent on each, with `workers` processes at it at once.

    The mean worker counts: cores that share caches and power are slower together than alone.
    """
    fused.library()  # compiled before anything is timed, or the want of a compiler told, once
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=native.told_already) as pool:
        jobs = [pool.submit(_time_all, list(runs), place, seconds) for _ in range(workers)]
        times = np.mean([job.result() for job in jobs], axis=0)
    flops = [float(run.flops_per_token + run.model.head_flops_per_token) for run in runs]
    order = np.argsort(flops)
    return Throughput(
        threads=place.threads,
        flops=tuple(flops[i] for i in order),
        seconds=tuple(float(times[i]) for i in order),
    )


def _time_all(runs: list[Run], place: Place, seconds: float) -> list[float]:
    settle(place)
    return [_time_one(run, place.device, seconds) for run in runs]


def _time_one(run: Run, device: str, seconds: float) -> float:
    """Lower-quartile seconds a token of real steps on random tokens, as many as fit in `seconds`.

    Not the median: a passing burst of other work is no reason to plan a smaller ladder.
    """
    step = stepping(run, device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < WARM_STEPS + 3 or time.perf_counter() - began < seconds:
        times.append(timed(step))
    return float(np.quantile(times[WARM_STEPS:], 0.25)) / run.train.batch_tokens


def stepping(run: Run, device: str) -> Callable[[], StepStats]:
    """A function that takes one real optimizer step of `run` whenever it is called, on one batch of random tokens."""
    model = build(run.model, run.model.d_model)
    initialise(model, run.train.seed)
    model.to(device)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, tokens=run.train.batch_tokens * 10_000))
    stepper, guard = Stepper(run, model, next_token_loss), Guard(run.train.optimizer.lr)
    rows = run.train.batch_tokens // run.data.seq_len
    x_BT = torch.randint(run.model.vocab_size, (rows, run.data.seq_len + 1), device=device)
    count = itertools.count()
    return lambda: stepper.take(next(count), x_BT, guard)


def timed(step: Callable[[], object]) -> float:
    """Seconds that `step` takes. On a GPU its optimizer is not waited for: the step before it makes up for that."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def fastest_threads(run: Run, seconds: float) -> int:
    """One thread of this CPU or as many as it has cores: on whichever real steps of `run`, in turns, are the faster.

    About `seconds` are spent on it, none where a pass is `LARGE`.
    """
    tokens = run.train.micro_batch_tokens or run.train.batch_tokens
    if cores() == 1 or tokens * (run.flops_per_token + run.model.head_flops_per_token) > LARGE:
        return cores()
    step = stepping(run, "cpu")

    def on(count: int) -> None:
        with on_threads(count):
            step()

    counts = (1, cores())
    times = step_seconds([functools.partial(on, count) for count in counts], seconds)
    return min(zip(counts, times, strict=True), key=lambda pair: min(pair[1]))[0]


def measure_step_cost(threads: int, seconds: float) -> StepCost:
    """Rates of the works of a training step on `threads` threads of this CPU, in about `seconds` and a warm-up."""
    jobs = [
        Job(model=shape(width, vocab), seq_len=length, batch_tokens=batch, optimizer=optimizer, precision="fp32")
        for width, batch, length, optimizer, vocab in STEP_POINTS
    ]
    with on_threads(threads):
        times = step_seconds([stepping(run_of(job), "cpu") for job in jobs], seconds)
    return fit_step_cost(list(zip(jobs, map(statistics.median, times), strict=True)), threads)


def step_seconds(steps: Sequence[Callable[[], object]], seconds: float, rounds: int = 3) -> list[list[float]]:
    """Seconds of every step taken by each of `steps`: in turns, at least `rounds`, for `seconds` in all."""
    for step in steps:
        step()
    times: list[list[float]] = [[] for _ in steps]
    began = time.perf_counter()
    while len(times[0]) < rounds or time.perf_counter() - began < seconds:
        for step, found in zip(steps, times, strict=True):
            found.append(timed(step))
    return times


def run_of(job: Job) -> Run:
    """A run of `job` by our own trainer, on any data. It is as long as a step: `stepping` takes as many as it likes."""
    parts = {"adamw": AdamW, "muon": Muon, "adamw8bit": AdamW8, "schedule-free": ScheduleFreeAdamW}
    optimizer = parts[job.optimizer](lr=1e-3)
    tokens = job.batch * job.seq_len
    return Run(
        model=job.model,
        data=Data(tokenizer=BPE(vocab_size=job.model.vocab_size), seq_len=job.seq_len),
        train=Train(tokens=tokens, batch_tokens=tokens, optimizer=optimizer, schedule=WSD(), precision=job.precision),
    )
