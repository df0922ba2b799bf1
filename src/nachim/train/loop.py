"""The one training loop."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nachim.model.recompute import arrange
from nachim.spec import Activations, RollBack, Run, UserError
from nachim.spec.disk import locked, write_text
from nachim.train import checkpoint, manifest, metrics
from nachim.train.checkpoint import Progress
from nachim.train.ewc import Penalty
from nachim.train.exact import products_are_even
from nachim.train.guard import Fault, Guard
from nachim.train.heartbeat import Heartbeat, Journal, pulse
from nachim.train.manifest import Damaged
from nachim.train.metrics import Metrics
from nachim.train.onlooker import Onlooker, Onlookers
from nachim.train.resume import claim, mend_metrics, where_to_begin
from nachim.train.step import LossFn, Stepper
from nachim.train.stopping import Stopped
from nachim.train.writer import Writer

Batches = Callable[[int, int], np.ndarray]
"""(first sequence index, count) to int64 sequences [count, T + 1]: the state of the loader is one integer."""
Validate = Callable[[nn.Module], dict[str, float]]
"""Measures the model; must return `loss` (nat/token), may return `bpb`, and both of texts apart (`bpb/NAME`)."""


@dataclass(frozen=True)
class Watch:
    """Who looks on: `say(sentence)` is told what befalls the run, `stopping()` is asked after every step, and
    `onlookers` see each step before and after it was taken."""

    say: Callable[[str], None] = lambda sentence: None
    stopping: Callable[[], bool] = lambda: False
    onlookers: tuple[Onlooker, ...] = ()


@dataclass(frozen=True)
class Stage:
    """What a caller may decide about the carrying out of a run without changing its weights.

    `start` is a checkpoint of another run whose first steps are the same; `keep` names steps whose checkpoints stay;
    `checkpoint_seconds` is the longest work a kill can cost; `on_step(steps_done, loss)` is called after every step.
    `activations` says what of a forward pass is kept for the backward pass.
    """

    device: str = "cpu"
    activations: Activations = Activations()
    start: Path | None = None
    keep: frozenset[int] = frozenset()
    checkpoint_seconds: float = 20.0
    on_step: Callable[[int, float], None] = field(default=lambda step, loss: None)
    watch: Watch = Watch()


def train(
    run: Run,
    model: nn.Module,
    batches: Batches,
    loss: LossFn,
    validate: Validate,
    out: Path,
    stage: Stage,
    penalty: Penalty | None = None,
) -> dict[str, Any]:
    """Train `model` as `run` says and return the result, also written to `out/result.json`. A `penalty` on the weights
    stands beside the loss.

    Finished runs return at once; interrupted ones go on from their last good checkpoint, bit for bit. Raises UserError
    when `out` holds another run, is in use or cannot be written, Diverged when the guard stops it, and Stopped when it
    was asked to.
    """
    journal = Journal(out, stage.watch.say)
    claim(out, run, journal.note)
    with locked(out / "lock"):
        result_path = out / manifest.RESULT
        if result_path.exists():
            with contextlib.suppress(Damaged):
                return manifest.read_result(result_path)
            journal.note(f"{result_path} is not what was written, and will be written again")
        model.to(stage.device)
        if stage.activations != Activations():
            train, length = run.train, run.data.seq_len
            rows = (train.micro_batch_tokens or train.largest_batch) // length
            stage.watch.say(arrange(model, stage.activations, rows, length, train.precision))
        sitting = _Sitting(run, Stepper(run, model, loss, penalty), batches, validate, out, stage, journal)
        gc.collect()
        gc.freeze()
        try:
            result = sitting.finish()
        finally:
            gc.unfreeze()
        write_text(result_path, manifest.result_text(result))
        sitting.heart.beat(run.train.steps, "finished")
        return result


class _Sitting:
    """One process's work on a run, from its last checkpoint to its end."""

    def __init__(
        self,
        run: Run,
        stepper: Stepper,
        batches: Batches,
        validate: Validate,
        out: Path,
        stage: Stage,
        journal: Journal,
    ) -> None:
        self.run, self.stepper, self.batches, self.validate, self.stage = run, stepper, batches, validate, stage
        self.root, self.metrics_path = out / checkpoint.CHECKPOINT, out / manifest.METRICS
        self.journal, self.heart, self.writer = journal, Heartbeat(out, run.train.steps), Writer()
        self.out, self.onlookers = out, Onlookers(stage.watch.onlookers, journal.note)
        self.first = checkpoint.step_of(stage.start) if stage.start else 0
        self.passed_tokens: int | None = None
        self.saved: int | None = None
        self.clock = time.monotonic()

    def _begin(self) -> None:
        """Find where to go on, and say what befell the sitting before."""
        before = pulse(self.heart.path.parent)
        self.heart.beat(before.step if before else 0)
        begin = where_to_begin(self.root, self.run, self.stage.start, self.journal.note)
        mend_metrics(self.metrics_path, self.root, self.journal.note)
        if before and before.state == "training":
            self.journal.note(
                f"process {before.pid} ended at step {before.step} or later without a word: "
                f"going on from {begin.name if begin else 'the start'}"
            )
        self._open(begin)
        if self.stage.device == "cpu" and not products_are_even():
            self.journal.note(
                f"products add up in another order on {torch.get_num_threads()} threads than on one here: the weights "
                "depend on the number of threads"
            )
        if begin and begin.parent == self.root:
            self.saved = self.progress.step

    def _open(self, begin: Path | None) -> None:
        """Take up the state in `begin`: weights, metrics, and what the guard remembers."""
        self.progress = checkpoint.load(begin, self.stepper) if begin else Progress()
        own = begin is not None and begin.parent == self.root
        if own:
            torch.set_num_threads(self.progress.threads)
        else:
            self.progress.seconds, self.progress.threads = 0.0, torch.get_num_threads()
        past = None
        if begin is not None:
            inside, beside = begin / manifest.METRICS, begin.parent.parent / manifest.METRICS
            past = metrics.read(inside if inside.exists() else beside, self.progress.step)
        self.metrics = Metrics(past if own else None)
        self.guard = Guard(self.run.train.optimizer.lr, self.run.train.on_spike, self._last_good)
        if past is not None:
            self.guard.remember(past)
        self.onlookers.tell("begin", self.out, self.run, self.progress.step, self.journal.note)

    def finish(self) -> dict[str, Any]:
        """Take the steps that are left; the result of the whole run. What is being written is waited for."""
        try:
            self._begin()
            self._take_steps()
            self.writer.wait()
            metrics.write(self.metrics.table(), self.metrics_path)
            checkpoint.prune(self.root, self._kept(self.progress.step, self.metrics))
        except BaseException as error:
            stopped = isinstance(error, Stopped)
            if not (stopped and error.step is None):  # asked twice, or long ago: no time to wait
                with contextlib.suppress(UserError):
                    self.writer.wait()
            told = Stopped(max(checkpoint.steps(self.root), default=None)) if stopped else error
            self.journal.record(str(told) or repr(told))
            self.heart.beat(self.heart.step, "stopped" if stopped else "failed")
            if stopped:
                raise told from None
            raise
        finally:
            self.onlookers.tell("end")
        return self._result(self.metrics.last_validation())

    def _take_steps(self) -> None:
        steps, validation = self.run.train.steps, self.run.validation
        measure_at = {round(steps * (i + 1) / validation.times) for i in range(validation.times)}
        if isinstance(self.run.train.on_spike, RollBack) and self.saved != self.progress.step:
            self._save()
        while self.progress.step < steps:
            self.writer.check()
            try:
                self._step()
            except Fault as fault:
                self._roll_back(fault)
                continue
            step = self.progress.step
            if step in measure_at:
                found = self.validate(self.stepper.model)
                losses = {f"validation_{name}": value for name, value in found.items() if name.startswith("loss")}
                bits = {name: value for name, value in found.items() if name.startswith("bpb")}
                self.metrics.rows[-1].update(losses | bits)
            self.onlookers.tell("after", self.metrics.rows[-1])
            if self._due(step):
                self._save()
            self.heart.beat(step)
            if step < steps and self.stage.watch.stopping():
                self._save()
                self.writer.wait()
                raise Stopped(step)

    def _step(self) -> None:
        began = time.perf_counter()
        train = self.run.train
        step, length = self.progress.step, self.run.data.seq_len
        first, end = train.token_at(step) // length, train.token_at(step + 1) // length
        x_BT = torch.from_numpy(self.batches(first + self.progress.passed, end - first)).to(self.stage.device)
        self.onlookers.tell("before", self.stepper, step, x_BT)
        stats = self.stepper.take(step, x_BT, self.guard)
        seconds = time.perf_counter() - began
        self.progress.step += 1
        self.progress.seconds += seconds
        tokens = train.token_at(self.progress.step)
        row = vars(stats) | {"passed_tokens": self.passed_tokens}
        self.metrics.add(step=self.progress.step, tokens=tokens, seconds=seconds, **row)
        self.passed_tokens = None
        if stats.skipped:
            self.journal.note(f"step {step} was skipped: {self.guard.told}")
        self.stage.on_step(self.progress.step, stats.loss)

    def _due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step`, by the recipe or by the clock."""
        keep, row = self.run.train.keep, self.metrics.rows[-1] if self.metrics.rows else {}
        by_recipe = (
            step == self.run.train.steps
            or step in self.stage.keep
            or (keep.every is not None and step % keep.every == 0)
            or self._is_mark(step)
            or (keep.best and row.get("validation_loss") is not None and self.metrics.best_step() == step)
        )
        return by_recipe or time.monotonic() - self.clock > self.stage.checkpoint_seconds

    def _is_mark(self, step: int) -> bool:
        """Whether a roll-back may go back to `step`."""
        policy = self.run.train.on_spike
        return isinstance(policy, RollBack) and (step % policy.every == 0 or step == self.first)

    def _last_good(self) -> str:
        with contextlib.suppress(UserError):
            self.writer.wait()
        return str(checkpoint.latest(self.root) or self.stage.start or "none was written yet")

    def _save(self) -> None:
        """Copy the state and have it written while the run goes on, unless it is being written or written already."""
        if self.saved == self.progress.step:
            return
        self.writer.wait()
        taken = checkpoint.snapshot(self.stepper, self.progress, self.metrics.table())
        beside = self.onlookers.saving(taken.step)
        self.writer.submit(lambda: self._write(taken, beside))
        self.saved, self.clock = taken.step, time.monotonic()

    def _write(self, taken: checkpoint.Snapshot, beside: Callable[[], None]) -> None:
        beside()
        checkpoint.write(self.root, taken)
        metrics.write(taken.rows, self.metrics_path)
        checkpoint.prune(self.root, self._kept(taken.step, Metrics(taken.rows)))

    def _kept(self, step: int, rows: Metrics) -> frozenset[int]:
        """Steps of the checkpoints that stay when the newest is that of `step`."""
        keep, found, going_on = self.run.train.keep, checkpoint.steps(self.root), step < self.run.train.steps
        newest = found[-(keep.last + going_on) :]
        every = [one for one in found if keep.every and one % keep.every == 0]
        best = {rows.best_step()} & set(found) if keep.best else ()
        marks = [one for one in found if self._is_mark(one)][-2:] if going_on else []
        return self.stage.keep.union(newest, every, best, marks)

    def _roll_back(self, fault: Fault) -> None:
        """Go back to the newest mark before `fault`, and pass over the data from there to its step's end."""
        policy, train, length = self.run.train.on_spike, self.run.train, self.run.data.seq_len
        self.writer.wait()
        passed, times = self.progress.passed, self.progress.rollbacks + 1

        def before(step: int) -> bool:
            return step <= fault.step and self._is_mark(step)

        target = checkpoint.newest_good(self.root, self.journal.note, before)
        if target is None or times > policy.limit:
            self.guard.stop(fault.step, f"{fault.why}, after {times - 1} roll-backs")
        back = checkpoint.step_of(target)
        for step in checkpoint.steps(self.root):
            if step > back:
                checkpoint.remove(checkpoint.path_at(self.root, step))
        self.stepper.forget()
        self._open(target)
        self.passed_tokens = train.token_at(fault.step + 1) - train.token_at(back)
        self.progress.passed, self.progress.rollbacks = passed + self.passed_tokens // length, times
        self.saved = back
        self.journal.note(
            f"step {fault.step}: {fault.why}; rolled back to step {back}, and {self.passed_tokens:,} tokens passed over"
        )

    def _result(self, validation: dict[str, float]) -> dict[str, Any]:
        run = self.run
        taken = run.train.steps - self.first
        share = 1 - run.train.token_at(self.first) / run.train.tokens
        seconds = self.progress.seconds
        best = {"best_step": self.metrics.best_step()} if run.train.keep.best else {}
        return {
            "fingerprint": run.fingerprint,
            "validation": validation,
            **best,
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
