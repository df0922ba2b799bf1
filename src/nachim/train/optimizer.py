"""Optimizers from their parts. Every parameter belongs to exactly one group."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nachim.spec import AdamW, Muon, UserError
from nachim.train.muon import MuonOptimizer


class Together:
    """Optimizers that share a model's parameters between them, seen as one."""

    def __init__(self, **members: torch.optim.Optimizer) -> None:
        self.members = members

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members."""
        return [group for member in self.members.values() for group in member.param_groups]

    def step(self) -> None:
        """One step of every member."""
        for member in self.members.values():
            member.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for member in self.members.values():
            member.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The state of every member, by name."""
        return {name: member.state_dict() for name, member in self.members.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        for name, member in self.members.items():
            member.load_state_dict(state[name])


@functools.singledispatch
def build_optimizer(part: object, weights: Mapping[str, Tensor]) -> Together:
    """The optimizer of `part` over fp32 `weights` by name."""
    raise UserError(f"no optimizer computes {type(part).__name__}: register one with train.optimizer.build_optimizer")


@build_optimizer.register
def _(part: AdamW, weights: Mapping[str, Tensor]) -> Together:
    return Together(adamw=_adamw(part, weights))


@build_optimizer.register
def _(part: Muon, weights: Mapping[str, Tensor]) -> Together:
    matrices = {name: w for name, w in weights.items() if name.startswith("blocks.") and w.ndim == 2}
    rest = {name: w for name, w in weights.items() if name not in matrices}
    muon = MuonOptimizer(list(matrices.values()), part.lr, part.momentum, part.weight_decay)
    return Together(muon=muon, adamw=_adamw(part, rest))


def _adamw(part: AdamW, weights: Mapping[str, Tensor]) -> torch.optim.AdamW:
    """Matrices are decayed, gains are not."""
    groups = [
        {"params": [w for w in weights.values() if w.ndim >= 2], "weight_decay": part.weight_decay},
        {"params": [w for w in weights.values() if w.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (part.beta1, part.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=part.lr, betas=betas, eps=part.eps, fused=True)
