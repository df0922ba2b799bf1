"""Muon: momentum, made orthogonal, as the update of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class MuonOptimizer(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) over fp32 matrices, or stacks of them; the update scale of arXiv 2502.16982, eq. 4.

    Same rule as torch.optim.Muon with `match_rms_adamw`; here the iteration runs in fp32 where the machine has no fast
    bf16, and matrices of one shape are made orthogonal together, which is what small models need.
    """

    def __init__(self, weights: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                by_shape.setdefault(weight.shape, []).append(weight)
            for weights in by_shape.values():
                self._move(weights, group)

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [weight.grad for weight in weights]
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        update = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        rows, columns = update.shape[-2:]
        scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        moves = orthogonal(update.flatten(0, -3)).view_as(update)
        torch._foreach_add_(weights, list(moves), alpha=-scale)


def orthogonal(matrices_NRC: Tensor) -> Tensor:
    """Each matrix with its singular values pulled towards 1, by five steps of a quintic Newton-Schulz iteration."""
    x_NRC = matrices_NRC.bfloat16() if matrices_NRC.is_cuda else matrices_NRC
    wide = x_NRC.shape[1] <= x_NRC.shape[2]
    x = x_NRC if wide else x_NRC.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x if wide else x.mT).to(matrices_NRC.dtype)
