"""Optimizers: how gradients move weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class AdamW(Part):
    """Adam with decoupled weight decay (arXiv 1711.05101): each step shrinks matrices by `lr * weight_decay`.

    That is torch's convention, and of every part below: decay follows the schedule and the rate. The paper's own does
    not follow the rate: its decay of d a step is a `weight_decay` of d / lr. Gains (one-dimensional parameters) are
    not decayed.
    """

    looks_ahead: ClassVar[bool] = False
    """Whether gradients are taken elsewhere than at the weights that are validated and kept."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1

    def check(self) -> None:
        self.require_positive("lr", "eps")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                self.refuse(name, f"is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.weight_decay < 0:
            self.refuse("weight_decay", f"is {self.weight_decay}; it must not be negative")


@dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Momentum made orthogonal for the matrices of the blocks (Jordan et al. 2024); AdamW for all other parameters.

    An update is scaled by 0.2 sqrt(max(rows, columns)), the root mean square of AdamW's (arXiv 2502.16982, eq. 4), so
    that one `lr` and one `weight_decay` serve both. Each block matrix keeps one momentum instead of two moments.
    """

    momentum: float = 0.95

    def check(self) -> None:
        super().check()
        if not 0 <= self.momentum < 1:
            self.refuse("momentum", f"is {self.momentum}; it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class AdamW8(AdamW):
    """AdamW with moments in 8 bits for the matrices of the blocks: block-wise quantisation (arXiv 2110.02861, sec. 2).

    `BLOCK` values share one fp32 scale. Embedding, head, vectors, and matrices of fewer than `LEAST` values keep fp32
    moments. The moments of a rare token, beside frequent ones in its block, would stop decaying: a table needs its own
    32 bits (sec. 2.3).
    """

    BLOCK: ClassVar[int] = 256
    LEAST: ClassVar[int] = 4096
    CHUNK: ClassVar[int] = 2**20
    """Values whose moments stand in fp32 at a time: whole blocks, so that cutting changes nothing."""


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamW(AdamW):
    """AdamW without a schedule (arXiv 2405.15682, algorithm 1): the weights are a running average of the iterates.

    Gradients are taken between the two, `beta1` of the way from the iterate to the average. What is validated and kept
    is always the average, so that a run may end at any step. It wants the schedule `Constant`, with its warm-up.
    """

    looks_ahead = True
