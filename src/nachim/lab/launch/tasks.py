"""The tasks of a build on a cluster: a Slurm array or Ray, with the pipeline as it is.

Every node must see the build's folder, and what it reads, under the same path. Tasks are done when their shard is there
under its key, so that jobs may be lost, and the same command goes on.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nachim.data.work import Modules, Task, learn
from nachim.spec import UserError

EVERY_SECONDS = 2.0
ROUNDS = 3
"""How often tasks that no job has finished are handed in again."""


def carry_out(modules: Modules, folder: str, tasks: Sequence[Task]) -> str | None:
    """Do `tasks` in this process, from `folder`; the sentence of a mistake that a person can mend, or None."""
    os.chdir(folder)
    learn(modules)
    try:
        for task in tasks:
            if not task.known():
                task.carry_out()
    except UserError as error:
        return str(error)
    return None


class SlurmArray:
    """Carries out tasks as the jobs of a Slurm array, at most `jobs` of them; logs go to `folder`.

    `options` are those of submitit (`slurm_partition="cpu"`, `timeout_min=60`, `mem_gb=8`, ...).
    """

    def __init__(self, folder: Path, jobs: int, modules: Modules, cluster: str = "slurm", **options: Any) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("a Slurm array needs an extra: pip install 'nachim[slurm]'") from error
        self.jobs, self.modules = jobs, modules
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except RuntimeError as error:
            raise UserError(f"no Slurm here: {error}") from error
        self.executor.update_parameters(name="nachim", cpus_per_task=1, **options)

    def __call__(self, tasks: Sequence[Task], tick: Callable[[int], None]) -> None:
        """Do `tasks`. Raises UserError when jobs fail time and again."""
        left = list(tasks)
        for _ in range(ROUNDS):
            if not left:
                return
            parts = [left[i :: self.jobs] for i in range(min(self.jobs, len(left)))]
            jobs = self.executor.map_array(functools.partial(carry_out, self.modules, os.getcwd()), parts)
            while not all(job.done() for job in jobs):
                time.sleep(EVERY_SECONDS)
                tick(sum(task.known() for task in tasks))
            for job in jobs:
                if job.exception() is None and (said := job.result()):
                    raise UserError(said)
            left = [task for task in left if not task.known()]
            tick(len(tasks) - len(left))
        if left:
            raise UserError(
                f"{len(left)} of {len(tasks)} shards were not made by {ROUNDS} arrays of jobs; their logs are in "
                f"{self.executor.folder}; run the same command again to go on"
            )


class RayTasks:
    """Carries out tasks on the Ray cluster at `address`, or on one that is begun here."""

    def __init__(self, modules: Modules, address: str | None = None, workers: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("Ray needs an extra: pip install 'nachim[ray]'") from error
        self.ray, self.modules = ray, modules
        if not ray.is_initialized():
            ray.init(address=address, num_cpus=None if address else workers, log_to_driver=False)

    def __call__(self, tasks: Sequence[Task], tick: Callable[[int], None]) -> None:
        """Do `tasks`; Ray does those of a lost node again. Raises UserError for what a person can mend."""
        do = self.ray.remote(num_cpus=1, max_retries=ROUNDS)(carry_out)
        open_jobs, done = [do.remote(self.modules, os.getcwd(), [task]) for task in tasks], 0
        while open_jobs:
            ready, open_jobs = self.ray.wait(open_jobs, timeout=EVERY_SECONDS)
            for job in ready:
                if said := self.ray.get(job):
                    raise UserError(said)
            done += len(ready)
            tick(done)
