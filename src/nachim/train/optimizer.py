"""Optimizers from their parts. Every parameter belongs to exactly one group."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nachim.model.decoder import is_matrix, role
from nachim.spec import AdamW, Decoder, Muon, UserError
from nachim.spec.parametrisation import Multipliers
from nachim.train.muon import MuonOptimizer

BLOCKS = ("blocks.", "mtp.")
"""How the names of weights begin that stand between embedding and head."""


class Together:
    """Optimizers that share a model's parameters between them, seen as one.

    The learning rate a group is given is what all share, times the group's own factor. Factors follow from the run:
    they are not part of the state.
    """

    def __init__(self, **members: torch.optim.Optimizer) -> None:
        self.members = members
        self.factors = [group.pop("factor") for group in self.param_groups]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members."""
        return [group for member in self.members.values() for group in member.param_groups]

    def set_lr(self, lr: float) -> None:
        """Give every group the learning rate `lr` times its factor."""
        for group, factor in zip(self.param_groups, self.factors, strict=True):
            group["lr"] = lr * factor

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
def build_optimizer(part: object, weights: Mapping[str, Tensor], model: Decoder) -> Together:
    """The optimizer of `part` over fp32 `weights` by name, its values for each as `model`'s parametrisation says."""
    raise UserError(f"no optimizer computes {type(part).__name__}: register one with train.optimizer.build_optimizer")


@build_optimizer.register
def _(part: AdamW, weights: Mapping[str, Tensor], model: Decoder) -> Together:
    return Together(adamw=_adamw(part, weights, model))


@build_optimizer.register
def _(part: Muon, weights: Mapping[str, Tensor], model: Decoder) -> Together:
    matrices = {name: w for name, w in weights.items() if name.startswith(BLOCKS) and is_matrix(name, w)}
    rest = {name: w for name, w in weights.items() if name not in matrices}
    own = model.parametrisation.muon(model.d_model)
    muon = MuonOptimizer(list(matrices.values()), part.lr, part.momentum, part.weight_decay * own.weight_decay)
    muon.param_groups[0]["factor"] = own.lr
    return Together(muon=muon, adamw=_adamw(part, rest, model))


def _adamw(part: AdamW, weights: Mapping[str, Tensor], model: Decoder) -> torch.optim.AdamW:
    """Matrices are decayed, gains are not; weights of the same values make a group."""
    groups: dict[tuple[bool, Multipliers], list[Tensor]] = {}
    for name, weight in sorted(weights.items(), key=lambda item: not is_matrix(*item)):
        own = model.parametrisation.adamw(role(name, weight), model.d_model, model.n_layers)
        groups.setdefault((is_matrix(name, weight), own), []).append(weight)
    settings = [
        {
            "params": found,
            "weight_decay": part.weight_decay * own.weight_decay if decayed else 0.0,
            "eps": part.eps * own.eps,
            "factor": own.lr,
        }
        for (decayed, own), found in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=part.lr, betas=(part.beta1, part.beta2), fused=True)
