"""One optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nachim.model import DecoderModule
from nachim.spec import Run
from nachim.train.guard import Guard
from nachim.train.optimizer import build_optimizer
from nachim.train.precision import Masters
from nachim.train.schedule import factor

LossFn = Callable[[nn.Module, Tensor], Tensor]
"""(model, sequences [B, T + 1]) to the mean loss, nat/token."""


@dataclass(frozen=True)
class StepStats:
    """What a step was: mean loss before the update (nat/token), gradient norm before clipping, learning rate.

    `imbalance` is the largest load of an expert over its layer's mean, in the worst layer; None without experts.
    """

    loss: float
    grad_norm: float
    lr: float
    imbalance: float | None = None


class Stepper:
    """Model, fp32 weights and optimizer of one run; `take` moves them by one step."""

    def __init__(self, run: Run, model: nn.Module, loss: LossFn) -> None:
        self.run, self.model, self.loss = run, model, loss
        self.masters = Masters(model, run.train.precision)
        self.optimizer = build_optimizer(run.train.optimizer, self.masters.named(), run.model)

    def take(self, step: int, x_BT: Tensor, guard: Guard) -> StepStats:
        """Step number `step` (from 0) on the sequences `x_BT` [B, T + 1].

        The batch is split into micro-batches whose weighted gradients add up to the batch's. The guard may stop the run
        before the weights change.
        """
        train = self.run.train
        rows = train.micro_batch_tokens // self.run.data.seq_len if train.micro_batch_tokens else len(x_BT)
        loss = 0.0
        for micro in x_BT.split(rows):
            part = self.loss(self.model, micro) * (len(micro) / len(x_BT))
            part.backward()
            self.masters.gather_gradients()
            loss += part.item()
        weights = self.masters.weights
        norm = torch.nn.utils.clip_grad_norm_(weights, train.clip).item()
        guard.check(step, loss, norm)
        lr = train.optimizer.lr * factor(train, step)
        self.optimizer.set_lr(lr)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.masters.publish()
        told = self.model.after_step() if isinstance(self.model, DecoderModule) else {}
        return StepStats(loss, norm, lr, **told)
