"""AdamW with moments in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nachim.spec import AdamW8
from nachim.train.moments import quantise, restore

SIGNED = {"first": True, "second": False}


class AdamW8Optimizer(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101, algorithm 2) over fp32 weights; between steps its moments are `quantise`d.

    A step restores the moments of a chunk, takes the gradient in, moves the weight by them as they are in fp32, and
    only then quantises them again (arXiv 2110.02861, sec. 2).
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.0, "steps": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight."""
        for group in self.param_groups:
            group["steps"] += 1
            for weight in group["params"]:
                state = self.state[weight] or self._start(weight)
                gradient = weight.grad.reshape(-1)
                for begin in range(0, weight.numel(), AdamW8.CHUNK):
                    _move(weight.view(-1), gradient, state, slice(begin, begin + AdamW8.CHUNK), group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave. Torch casts state to the weights' precision: codes are cast back."""
        super().load_state_dict(state_dict)
        for held in self.state.values():
            held.update({name: tensor.to(torch.uint8) for name, tensor in held.items() if name.endswith("codes")})

    def _start(self, weight: Tensor) -> dict[str, Tensor]:
        for name, signed in SIGNED.items():
            codes, scales = quantise(weight.new_zeros(weight.numel()), signed)
            self.state[weight] |= {f"{name}_codes": codes, f"{name}_scales": scales}
        return self.state[weight]


def _move(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], chunk: slice, group: dict[str, Any]) -> None:
    """One step of `chunk` of a flat `weight`."""
    (beta1, beta2), steps = group["betas"], group["steps"]
    g = gradient[chunk]
    first, second = (_restored(state, name, chunk) for name in SIGNED)
    first.lerp_(g, 1 - beta1)
    second.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    size = second.sqrt().div_((1 - beta2**steps) ** 0.5).add_(group["eps"])
    weight[chunk].mul_(1 - group["lr"] * group["weight_decay"])
    weight[chunk].addcdiv_(first, size, value=-group["lr"] / (1 - beta1**steps))
    del size
    for name, moment in (("first", first), ("second", second)):
        codes, scales = quantise(moment, SIGNED[name])
        state[f"{name}_codes"][chunk] = codes
        state[f"{name}_scales"][_blocks(chunk)] = scales


def _restored(state: dict[str, Tensor], name: str, chunk: slice) -> Tensor:
    return restore(state[f"{name}_codes"][chunk], state[f"{name}_scales"][_blocks(chunk)], SIGNED[name])


def _blocks(chunk: slice) -> slice:
    return slice(chunk.start // AdamW8.BLOCK, chunk.stop // AdamW8.BLOCK)
