"""Optimizers from their parts. Every parameter belongs to exactly one group."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from nachim.model.decoder import is_matrix, role
from nachim.spec import AdamW, AdamW8, Decoder, Muon, ScheduleFreeAdamW, UserError
from nachim.spec.parametrisation import Multipliers
from nachim.train.adamw8 import AdamW8Optimizer
from nachim.train.muon import MuonOptimizer
from nachim.train.schedule_free import ScheduleFreeOptimizer

BLOCKS = ("blocks.", "mtp.")
"""How the names of weights begin that stand between embedding and head."""


class Stateful(Protocol):
    """What has a state that a resumed run needs."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""


class Together:
    """Optimizers that share a model's parameters between them, seen as one.

    The learning rate a group is given is what all share, times the group's own factor. Factors follow from the run:
    they are not part of the state. What stands `beside` the members by name is: it is kept and resumed with them.
    """

    def __init__(self, **members: torch.optim.Optimizer) -> None:
        self.members = members
        self.beside: dict[str, Stateful] = {}
        self.factors = [group.pop("factor") for group in self.param_groups]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members."""
        return [group for member in self.members.values() for group in member.param_groups]

    def set_lr(self, lr: float) -> None:
        """Give every group the learning rate `lr` times its factor."""
        for group, factor in zip(self.param_groups, self.factors, strict=True):
            group["lr"] = lr * factor

    def ahead(self, weight: Tensor) -> Tensor:
        """Where the next gradient of `weight` is to be taken: at itself, unless the part `looks_ahead`."""
        for member in self.members.values():
            if hasattr(member, "ahead"):
                weight = member.ahead(weight)
        return weight

    def step(self) -> None:
        """One step of every member."""
        for member in self.members.values():
            member.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for member in self.members.values():
            member.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The state of every member and of what stands beside them, by name."""
        return {name: held.state_dict() for name, held in (self.members | self.beside).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        for name, held in (self.members | self.beside).items():
            held.load_state_dict(state[name])


def check_owners(optimizer: Together, weights: Mapping[str, Tensor]) -> None:
    """Raise UserError unless each of `weights` is moved by exactly one member of `optimizer`, in one of its groups."""
    owners = Counter(id(weight) for group in optimizer.param_groups for weight in group["params"])
    wrong = [name for name, weight in weights.items() if owners[id(weight)] != 1]
    if wrong:
        times = owners[id(weights[wrong[0]])]
        raise UserError(
            f"{wrong[0]} has {times} owners among {', '.join(optimizer.members)} ({len(wrong)} such weights): "
            "build_optimizer must give every weight to exactly one"
        )


@functools.singledispatch
def build_optimizer(part: object, weights: Mapping[str, Tensor], model: Decoder) -> Together:
    """The optimizer of `part` over fp32 `weights` by name, its values for each as `model`'s parametrisation says."""
    raise UserError(f"no optimizer computes {type(part).__name__}: register one with train.optimizer.build_optimizer")


@build_optimizer.register
def _(part: AdamW, weights: Mapping[str, Tensor], model: Decoder) -> Together:
    return Together(adamw=_adamw(part, weights, model))


@build_optimizer.register
def _(part: Muon, weights: Mapping[str, Tensor], model: Decoder) -> Together:
    matrices, rest = _parted(weights)
    own = model.parametrisation.muon(model.d_model)
    muon = MuonOptimizer(list(matrices.values()), part.lr, part.momentum, part.weight_decay * own.weight_decay)
    muon.param_groups[0]["factor"] = own.lr
    return Together(muon=muon, adamw=_adamw(part, rest, model))


@build_optimizer.register
def _(part: AdamW8, weights: Mapping[str, Tensor], model: Decoder) -> Together:
    large, rest = _parted(weights, AdamW8.LEAST)
    if not large:
        return Together(adamw=_adamw(part, rest, model))
    adamw8 = AdamW8Optimizer(_groups(part, large, model), part.lr, (part.beta1, part.beta2))
    return Together(adamw8=adamw8, adamw=_adamw(part, rest, model))


@build_optimizer.register
def _(part: ScheduleFreeAdamW, weights: Mapping[str, Tensor], model: Decoder) -> Together:
    groups = _groups(part, weights, model)
    return Together(schedule_free=ScheduleFreeOptimizer(groups, part.lr, (part.beta1, part.beta2)))


def _parted(weights: Mapping[str, Tensor], least: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The matrices of the blocks with at least so many values, and the rest."""
    matrices = {n: w for n, w in weights.items() if n.startswith(BLOCKS) and is_matrix(n, w) and w.numel() >= least}
    return matrices, {name: weight for name, weight in weights.items() if name not in matrices}


def _adamw(part: AdamW, weights: Mapping[str, Tensor], model: Decoder) -> torch.optim.AdamW:
    groups = _groups(part, weights, model)
    return torch.optim.AdamW(groups, lr=part.lr, betas=(part.beta1, part.beta2), fused=True)


def _groups(part: AdamW, weights: Mapping[str, Tensor], model: Decoder) -> list[dict[str, Any]]:
    """Matrices are decayed, gains are not; weights of the same values make a group."""
    groups: dict[tuple[bool, Multipliers], list[Tensor]] = {}
    for name, weight in sorted(weights.items(), key=lambda item: not is_matrix(*item)):
        own = model.parametrisation.adamw(role(name, weight), model.d_model, model.n_layers)
        groups.setdefault((is_matrix(name, weight), own), []).append(weight)
    return [
        {
            "params": found,
            "weight_decay": part.weight_decay * own.weight_decay if decayed else 0.0,
            "eps": part.eps * own.eps,
            "factor": own.lr,
        }
        for (decayed, own), found in groups.items()
    ]
