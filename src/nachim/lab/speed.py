"""Measuring how fast this machine trains, before anything is planned."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from nachim.budget.throughput import Throughput
from nachim.lab.work import Place, next_token_loss, settle
from nachim.model import build
from nachim.model.decoder import initialise
from nachim.spec import Run
from nachim.train.guard import Guard
from nachim.train.step import Stepper

WARM_STEPS = 2


def measure_throughput(runs: Sequence[Run], place: Place, workers: int, seconds: float) -> Throughput:
    """Seconds a token of the models of `runs`, `seconds` spent on each, with `workers` processes at it at once.

    The mean worker counts: cores that share caches and power are slower together than alone.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
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
    model = build(run.model, run.model.d_model)
    initialise(model, run.train.seed)
    model.to(device)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, tokens=run.train.batch_tokens * 10_000))
    stepper, guard = Stepper(run, model, next_token_loss), Guard(run.train.optimizer.lr)
    rows = run.train.batch_tokens // run.data.seq_len
    x_BT = torch.randint(run.model.vocab_size, (rows, run.data.seq_len + 1), device=device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < WARM_STEPS + 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        stepper.take(len(times), x_BT, guard)
        times.append(time.perf_counter() - start)
    return float(np.quantile(times[WARM_STEPS:], 0.25)) / run.train.batch_tokens
