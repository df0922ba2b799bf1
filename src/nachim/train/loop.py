"""The one training loop."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nachim.spec import Run, UserError, diff
from nachim.spec.disk import locked, read_json, write_text
from nachim.train import checkpoint
from nachim.train.checkpoint import Progress
from nachim.train.guard import Guard
from nachim.train.metrics import Metrics
from nachim.train.step import LossFn, Stepper

Batches = Callable[[int, int], np.ndarray]
"""(first sequence index, count) to int64 sequences [count, T + 1]: the state of the loader is one integer."""
Validate = Callable[[nn.Module], dict[str, float]]
"""Measures the model; must return `loss` (nat/token) and may return `bpb`."""


@dataclass(frozen=True)
class Stage:
    """What a caller may decide about the carrying out of a run without changing its weights.

    `start` is a checkpoint of another run whose first steps are the same; `keep` names steps whose checkpoints stay;
    `checkpoint_seconds` is the longest work a kill can cost; `on_step(steps_done, loss)` is called after every step.
    """

    device: str = "cpu"
    start: Path | None = None
    keep: frozenset[int] = frozenset()
    checkpoint_seconds: float = 20.0
    on_step: Callable[[int, float], None] = field(default=lambda step, loss: None)


def train(
    run: Run, model: nn.Module, batches: Batches, loss: LossFn, validate: Validate, out: Path, stage: Stage
) -> dict[str, Any]:
    """Train `model` as `run` says and return the result, also written to `out/result.json`.

    Finished runs return at once; interrupted ones go on from their last checkpoint, bit for bit. Raises UserError when
    `out` holds another run or is in use, and Diverged when the guard stops it.
    """
    claim(out, run)
    with locked(out / "lock"):
        result_path = out / "result.json"
        if result_path.exists():
            return read_json(result_path)
        model.to(stage.device)
        sitting = _Sitting(run, Stepper(run, model, loss), batches, validate, out, stage)
        gc.collect()
        gc.freeze()
        try:
            result = sitting.finish()
        finally:
            gc.unfreeze()
        write_text(result_path, json.dumps(result, indent=2) + "\n")
        return result


def claim(out: Path, run: Run) -> None:
    """Write `out/run.json`, or hold `run` against the one that is there. Raises UserError when they differ."""
    path = out / "run.json"
    if not path.exists():
        run.save(path)
        return
    found = Run.load(path)
    if found != run:
        changes = "; ".join(str(change) for change in diff(found, run))
        raise UserError(f"{out} holds another run ({changes}): choose another folder, or remove it")


class _Sitting:
    """One process's work on a run, from its last checkpoint to its end."""

    def __init__(
        self, run: Run, stepper: Stepper, batches: Batches, validate: Validate, out: Path, stage: Stage
    ) -> None:
        self.run, self.stepper, self.batches, self.validate, self.stage = run, stepper, batches, validate, stage
        self.root = out / "checkpoint"
        self.guard = Guard(run.train.optimizer.lr)
        begin = checkpoint.latest(self.root) or stage.start
        self.progress = checkpoint.load(begin, stepper) if begin else Progress()
        if begin and begin.parent == self.root:
            torch.set_num_threads(self.progress.threads)
        else:
            self.progress.seconds, self.progress.threads = 0.0, torch.get_num_threads()
        self.first = checkpoint.step_of(stage.start) if stage.start else 0
        self.metrics = Metrics(out / "metrics.parquet", self.progress.step)
        for row in self.metrics.rows:
            self.guard.observe(float(row["loss"] or 0.0))
        self.guard.last_good = str(begin) if begin else self.guard.last_good

    def finish(self) -> dict[str, Any]:
        """Take the steps that are left; the result of the whole run."""
        steps = self.run.train.steps
        measure_at = {round(steps * (i + 1) / self.run.validation.times) for i in range(self.run.validation.times)}
        saved = time.monotonic()
        validation = self.metrics.last_validation()
        while self.progress.step < steps:
            self._step()
            step = self.progress.step
            if step in measure_at:
                validation = self.validate(self.stepper.model)
                self.metrics.rows[-1].update(validation_loss=validation["loss"], bpb=validation.get("bpb"))
            due = time.monotonic() - saved > self.stage.checkpoint_seconds
            if due or step == steps or step in self.stage.keep:
                self._save()
                saved = time.monotonic()
        return self._result(validation)

    def _step(self) -> None:
        began = time.perf_counter()
        train = self.run.train
        step, length = self.progress.step, self.run.data.seq_len
        first, end = train.token_at(step) // length, train.token_at(step + 1) // length
        x_BT = torch.from_numpy(self.batches(first, end - first)).to(self.stage.device)
        stats = self.stepper.take(step, x_BT, self.guard)
        seconds = time.perf_counter() - began
        self.progress.step += 1
        self.progress.seconds += seconds
        tokens = train.token_at(self.progress.step)
        self.metrics.add(step=self.progress.step, tokens=tokens, seconds=seconds, **vars(stats))
        self.stage.on_step(self.progress.step, stats.loss)

    def _save(self) -> None:
        self.metrics.flush()
        where = checkpoint.save(self.root, self.stepper, self.progress, self.stage.keep)
        self.guard.last_good = str(where)

    def _result(self, validation: dict[str, float]) -> dict[str, Any]:
        run = self.run
        taken = run.train.steps - self.first
        share = 1 - run.train.token_at(self.first) / run.train.tokens
        seconds = self.progress.seconds
        return {
            "fingerprint": run.fingerprint,
            "validation": validation,
            "tokens": run.train.tokens,
            "steps": run.train.steps,
            "flops": run.flops,
            "head_flops": run.head_flops,
            "steps_taken_here": taken,
            "seconds": seconds,
            "tokens_per_second": run.train.tokens * share / seconds,
            "flops_per_second": run.flops * share / seconds,
            "head_flops_per_second": run.head_flops * share / seconds,
            "threads": torch.get_num_threads(),
        }
