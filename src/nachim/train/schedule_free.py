"""AdamW without a schedule: the weights are the average of its iterates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ScheduleFreeOptimizer(torch.optim.Optimizer):
    """Schedule-Free AdamW (arXiv 2405.15682, algorithm 1) over fp32 weights, which are always its average x.

    Gradients must be taken at `ahead(weight)`, its y, between x and the iterate z. The learning rate of each step is
    given, its warm-up included; the bias of the second moment is corrected in it, as the paper does.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.0, "steps": 0, "squares": 0.0}
        super().__init__(groups, defaults)
        self.beta1 = betas[0]

    def ahead(self, weight: Tensor) -> Tensor:
        """y = (1 - beta1) z + beta1 x: where the next gradient of `weight` is to be taken."""
        return torch.lerp(self.state[weight]["iterate"], weight, self.beta1) if weight in self.state else weight

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight."""
        for group in self.param_groups:
            group["steps"] += 1
            rate = group["lr"] * (1 - group["betas"][1] ** group["steps"]) ** 0.5
            group["squares"] += rate**2
            share = rate**2 / group["squares"] if rate else 0.0
            for weight in group["params"]:
                self._move(weight, group, rate, share)

    def _move(self, weight: Tensor, group: dict[str, Any], rate: float, share: float) -> None:
        """z - rate (g / (sqrt(v) + eps) + decay y), of which the average takes a `share`."""
        state, gradient, beta2 = self.state[weight], weight.grad, group["betas"][1]
        if not state:
            state |= {"iterate": weight.clone(), "second": torch.zeros_like(weight)}
        iterate, second = state["iterate"], state["second"]
        if group["weight_decay"]:
            iterate.add_(self.ahead(weight), alpha=-rate * group["weight_decay"])
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        iterate.addcdiv_(gradient, second.sqrt().add_(group["eps"]), value=-rate)
        weight.lerp_(iterate, share)
