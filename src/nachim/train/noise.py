"""The gradient noise scale: how large a batch is worth its tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MEMORY_STEPS = 100
"""Steps over which the two sizes are averaged: each is far too noisy by itself."""


def squared(weights: list[Tensor]) -> float:
    """Squared norm of the gradients on `weights`."""
    norms = torch._foreach_norm([weight.grad for weight in weights if weight.grad is not None])
    return float(torch.stack(norms).square().sum())


class NoiseScale:
    """B_simple = tr(S) / |G|^2 (arXiv 1812.06162, eq. 2.9) from gradients of two batches, one within the other.

    Both sizes are unbiased estimates (app. A.1, eq. A.2 and A.3), averaged over steps apart from each other, for their
    ratio is not. A batch of as many tokens takes twice the steps of a huge one, and half its tokens go to waste.
    """

    def __init__(self) -> None:
        self.signal, self.noise = 0.0, 0.0

    def take(self, small: float, small_tokens: int, big: float, big_tokens: int) -> float | None:
        """The scale in tokens after a step whose mean gradients have the squared norms `small` and `big`.

        None as long as the estimate of the true gradient's size is not above zero.
        """
        signal = (big_tokens * big - small_tokens * small) / (big_tokens - small_tokens)
        noise = (small - big) / (1 / small_tokens - 1 / big_tokens)
        self.signal += (signal - self.signal) / MEMORY_STEPS
        self.noise += (noise - self.noise) / MEMORY_STEPS
        return max(0.0, self.noise / self.signal) if self.signal > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """The two averages."""
        return {"signal": self.signal, "noise": self.noise}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.signal, self.noise = state_dict["signal"], state_dict["noise"]
