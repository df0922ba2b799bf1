"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nachim.model import DecoderModule
from nachim.model.router import RouterModule
from nachim.spec import Run
from nachim.train.ewc import Penalty
from nachim.train.exact import even_norms
from nachim.train.guard import Guard
from nachim.train.noise import NoiseScale, squared
from nachim.train.optimizer import build_optimizer, check_owners
from nachim.train.precision import LossScale, Masters
from nachim.train.schedule import factor

LossFn = Callable[[nn.Module, Tensor], Tensor]
"""(model, sequences [B, T + 1]) to the mean loss, nat/token."""


@dataclass(frozen=True)
class StepStats:
    """What a step was: mean loss before the update (nat/token), gradient norm before clipping, learning rate.

    A step that was skipped, for its gradients overflowed fp16, has an infinite norm and the rate 0. `noise_tokens` is
    the gradient noise scale in tokens, None where a step is one micro-batch. `imbalance` is the largest load of an
    expert over its layer's mean, in the worst layer; None without experts. `penalty`, nat/token, holds weights near
    others; it is not in the loss, and its gradient is in the norm.
    """

    loss: float
    grad_norm: float
    lr: float
    noise_tokens: float | None = None
    imbalance: float | None = None
    skipped: int | None = None
    penalty: float | None = None


class Stepper:
    """Model, fp32 weights and optimizer of one run; `take` moves them by one step.

    Between steps the weights are those to validate and keep, whatever the optimizer computes its gradients at.
    """

    def __init__(self, run: Run, model: nn.Module, loss: LossFn, penalty: Penalty | None = None) -> None:
        self.run, self.model, self.loss, self.penalty = run, model, loss, penalty
        train = run.train
        even_norms(model)
        self.masters = Masters(model, train.precision, apart=train.optimizer.looks_ahead)
        self.optimizer = build_optimizer(train.optimizer, self.masters.named(), run.model)
        check_owners(self.optimizer, self.masters.named())
        self.scale = LossScale() if train.precision == "fp16" else None
        self.noise = NoiseScale() if train.micro_batch_tokens else None
        beside = {"loss_scale": self.scale, "noise_scale": self.noise}
        self.optimizer.beside = {name: held for name, held in beside.items() if held is not None}

    def take(self, step: int, x_BT: Tensor, guard: Guard) -> StepStats:
        """Step number `step` (from 0) on the sequences `x_BT` [B, T + 1].

        The batch is split into micro-batches whose weighted gradients add up to the batch's. The guard may stop the run
        before the weights change, or have the step `skipped`: then they stay.
        """
        train = self.run.train
        if train.optimizer.looks_ahead:
            self.masters.publish(self.optimizer.ahead)
        loss, small, small_rows = self._backward(x_BT)
        large = squared(self.masters.weights) if self.noise is not None and self.penalty is not None else None
        pull = self._pull()
        norm = torch.nn.utils.clip_grad_norm_(self.masters.weights, train.clip).item()
        overflow = self.scale is not None and math.isfinite(loss) and not math.isfinite(norm)
        if not guard.check(step, loss, 0.0 if overflow else norm):
            self.forget()
            return StepStats(loss, norm, 0.0, skipped=1, penalty=pull)
        if self.scale is not None:
            self.scale.follow(overflow)
            if self.scale.value < 1:
                guard.stop(step, "gradients overflow fp16 even where the loss is not scaled: train in bf16")
        noise, length = None, self.run.data.seq_len
        if self.noise is not None and small_rows < len(x_BT) and not overflow:
            large = norm**2 if large is None else large
            noise = self.noise.take(small, small_rows * length, large, len(x_BT) * length)
        lr = 0.0 if overflow else train.optimizer.lr * factor(train, step)
        if not overflow:
            self.optimizer.set_lr(lr)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.masters.publish()
        told = self.model.after_step() if isinstance(self.model, DecoderModule) else {}
        return StepStats(loss, math.inf if overflow else norm, lr, noise, penalty=pull, **told)

    def forget(self) -> None:
        """Drop what a step that is not taken has left: gradients, where they were taken, and the loads of experts."""
        self.optimizer.zero_grad()
        self.masters.publish()
        for module in self.model.modules():
            if isinstance(module, RouterModule):
                module.load.zero_()

    def _pull(self) -> float | None:
        """Add the penalty's gradient to those of the fp32 weights, taken where they were; the penalty."""
        if self.penalty is None:
            return None
        if self.run.train.optimizer.looks_ahead:
            return self.penalty.pull(self.masters.named(), self.optimizer.ahead)
        return self.penalty.pull(self.masters.named())

    def _backward(self, x_BT: Tensor) -> tuple[float, float, int]:
        """Gradients of the batch's mean loss onto the weights; that loss, and the squared norm of the first
        micro-batch's own mean gradient with its rows."""
        train, scale = self.run.train, self.scale.value if self.scale else 1.0
        rows = train.micro_batch_tokens // self.run.data.seq_len if train.micro_batch_tokens else len(x_BT)
        loss, small = 0.0, 0.0
        for i, micro in enumerate(x_BT.split(rows)):
            share = len(micro) / len(x_BT)
            part = self.loss(self.model, micro) * share
            (part * scale if self.scale else part).backward()
            self.masters.gather_gradients(scale)
            loss += part.item()
            if i == 0 and share < 1:
                small = squared(self.masters.weights) / share**2
        return loss, small, min(rows, len(x_BT))
