"""Optimizers from their parts. Every parameter belongs to exactly one group."""

from __future__ import annotations

import torch
from torch import Tensor

from nachim.spec import AdamW


def build_optimizer(part: AdamW, weights: list[Tensor]) -> torch.optim.Optimizer:
    """AdamW over fp32 `weights`: matrices are decayed, gains are not."""
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": part.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (part.beta1, part.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=part.lr, betas=betas, eps=part.eps, fused=True)
