"""Tasks on this machine's cores. A worker that dies costs the task it had: the others' stand, and it is tried again."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from nachim.data.work import Modules, Task, learn
from nachim.spec.error import UserError

FRUITLESS = 3
"""How often in turn workers may die before one task is done."""


class Runner(Protocol):
    """Carries out tasks, in any order and anywhere, and returns when all are done; `tick` hears the number done."""

    def __call__(self, tasks: Sequence[Task], tick: Callable[[int], None]) -> None:
        """Do `tasks`."""


def here(tasks: Sequence[Task], tick: Callable[[int], None]) -> None:
    """One after another, in this process."""
    for count, task in enumerate(tasks, start=1):
        task.carry_out()
        tick(count)


class Pool:
    """`workers` processes. Use it in a `with` block; `modules` are read by each before it begins."""

    def __init__(self, workers: int, modules: Modules) -> None:
        self.workers, self.modules = workers, modules
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *failure: object) -> None:
        self._close()

    def __call__(self, tasks: Sequence[Task], tick: Callable[[int], None]) -> None:
        """Do `tasks`. Raises UserError when workers keep dying."""
        fruitless, left = 0, list(tasks)
        while left:
            before = len(left)
            try:
                self._all(left, len(tasks) - before, tick)
                return
            except BrokenProcessPool:
                self._close()
                left = [task for task in left if not task.known()]
                fruitless = 0 if len(left) < before else fruitless + 1
            if fruitless >= FRUITLESS:
                raise UserError(
                    f"workers died {FRUITLESS} times in turn over {left[0].target.name}, perhaps for want of memory: "
                    "take fewer workers or smaller shards, and run the same command again to go on"
                )

    def _all(self, tasks: Sequence[Task], before: int, tick: Callable[[int], None]) -> None:
        pool = self._pool = self._pool or self._opened()
        jobs = [pool.submit(task.carry_out) for task in tasks]
        try:
            for count, job in enumerate(as_completed(jobs), start=before + 1):
                job.result()
                tick(count)
        except BaseException:
            for job in jobs:
                job.cancel()
            raise

    def _opened(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        arguments = (self.modules, os.getpid())
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin, initargs=arguments)

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _begin(modules: Modules, parent: int) -> None:
    learn(modules)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    """End this worker once the process that asked for it is gone: nobody would tell it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
