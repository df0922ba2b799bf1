"""Chains of runs on this machine's cores: one process a worker, longest job first."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nachim.lab.ladder import Chain, name_of
from nachim.lab.work import Place, carry_out_chain
from nachim.model import fused, native
from nachim.spec import Run, UserError
from nachim.train.loop import Watch
from nachim.train.stopping import Stopped

EVERY_SECONDS = 0.25


@dataclass(frozen=True)
class Event:
    """News of a run: steps and tokens done, loss (nat/token), FLOP/token (body and head), threads, and its process."""

    run: str
    step: int
    steps: int
    token: int
    tokens: int
    loss: float
    flops_per_token: int
    threads: int
    worker: int


def event_of(name: str, run: Run, step: int, loss: float, threads: int) -> Event:
    """The news that `run`, called `name`, has done `step` steps in this process."""
    work = run.flops_per_token + run.model.head_flops_per_token
    train = run.train
    return Event(name, step, train.steps, train.token_at(step), train.tokens, loss, work, threads, os.getpid())


def carry_out_all(
    chains: Sequence[Chain],
    root: Path,
    place: Place,
    workers: int,
    on_event: Callable[[Event], None],
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Carry out `chains` under `root` in `workers` processes; what is finished is not repeated.

    The order given is the order of starting. Raises UserError when a worker process dies, naming what to do; the
    others' work is kept. Once `stopping()` every worker saves after the step it is at, and Stopped is raised.
    """
    fused.library()  # compiled, or the want of a compiler told, once and not by every worker
    context = multiprocessing.get_context("spawn")
    news: Any = context.Queue()
    stop: Any = context.Event()
    arguments = (news, stop, os.getpid())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=arguments) as pool:
        jobs = [pool.submit(_work, chain, root, place) for chain in chains]
        try:
            if _follow(jobs, news, on_event, stopping, stop):
                raise Stopped(None)
        except BrokenProcessPool as error:
            if stop.is_set():  # a signal to all processes met one that was only beginning
                raise Stopped(None) from None
            raise UserError(
                f"a training process died under {root}, perhaps for want of memory; run the same command again to go on"
            ) from error
        except BaseException:
            stop.set()
            for process in (pool._processes or {}).values():
                process.kill()
            raise


def _follow(
    jobs: list[Future[None]], news: Any, on_event: Callable[[Event], None], stopping: Callable[[], bool], stop: Any
) -> bool:
    """Wait for the jobs, and pass on their news; whether they were stopped before all were done.

    Jobs that wait their turn are not cancelled: each ends at once in the worker that takes it up.
    """
    open_jobs, stopped, begun = set(jobs), False, False
    while open_jobs:
        if stopping() and not stop.is_set():
            if not begun:  # nothing to save yet: workers that are only starting need not be waited for
                raise Stopped(None)
            stop.set()
            stopped = True
        done, open_jobs = wait(open_jobs, timeout=EVERY_SECONDS)
        try:
            while True:
                on_event(news.get_nowait())
                begun = True
        except queue.Empty:
            pass
        for job in done:
            try:
                job.result()
            except Stopped:
                stopped = True
    return stopped


_news: Any = None
_stop: Any = None
_parent = 0


def _begin(news: Any, stop: Any, parent: int) -> None:
    """Ready a worker. Signals meant for all are the parent's: it tells when to stop."""
    global _news, _stop, _parent
    _news, _stop, _parent = news, stop, parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    native.told_already()


def _work(chain: Chain, root: Path, place: Place) -> None:
    if _stop.is_set():
        raise Stopped(None)
    last = 0.0

    def report(run: Run, step: int, loss: float) -> None:
        nonlocal last
        if os.getppid() != _parent:
            os._exit(1)  # the laboratory was killed: a restarted one must find this run free
        if time.monotonic() - last > EVERY_SECONDS or step == run.train.steps:
            last = time.monotonic()
            _news.put(event_of(name_of(run), run, step, loss, place.threads))

    carry_out_chain(chain, root, place, report, Watch(stopping=_stop.is_set))
