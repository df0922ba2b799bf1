"""Compute precision: fp32 throughout, or bf16, fp16 or fp8 compute beside fp32 master weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nachim.model.decoder import tensors
from nachim.model.fp8 import in_8_bits

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""Precision of the weights in the model; products in fp8 round them further."""


class Masters:
    """The fp32 weights the optimizer owns, and their copy in the compute precision inside the model.

    In fp32 they are the same tensors, unless they are to be `apart`: where the model computes with other values than
    those kept. In bf16 and fp16 the model is cast once a step, gradients are summed in fp32. What a model keeps beside
    its weights (its persistent buffers) stays in the model, in its own precision.
    """

    def __init__(self, model: nn.Module, precision: str, apart: bool = False) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.compute = list(model.parameters())
        self.split = apart or precision != "fp32"
        if self.split:
            self.weights: list[Tensor] = [p.detach().clone() for p in self.compute]
            if precision != "fp32":
                model.to(DTYPES[precision])
            if precision == "fp8":
                in_8_bits(model)
        else:
            self.weights = list(self.compute)
        self.buffers = {name: held for name, held in tensors(model).items() if name not in self.names}

    def gather_gradients(self, scale: float = 1.0) -> None:
        """Add the gradients of one micro-batch, over the loss's `scale`, to those of the fp32 weights.

        A scale is for weights apart from the model's, and a power of two: dividing by it rounds nothing.
        """
        if not self.split:
            return
        for master, weight in zip(self.weights, self.compute, strict=True):
            if weight.grad is not None:
                gradient = weight.grad.float().div_(scale) if scale != 1 else weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                weight.grad = None

    def publish(self, seen: Callable[[Tensor], Tensor] | None = None) -> None:
        """Copy the fp32 weights, or what `seen` makes of each, into the model, rounded to its precision."""
        if not self.split:
            return
        with torch.no_grad():
            if seen is None:
                torch._foreach_copy_(self.compute, self.weights)
                return
            for weight, master in zip(self.compute, self.weights, strict=True):
                weight.copy_(seen(master))

    def named(self) -> dict[str, Tensor]:
        """The fp32 weights by name."""
        return dict(zip(self.names, self.weights, strict=True))

    def state(self) -> dict[str, Tensor]:
        """The fp32 weights and the buffers by name, as plain tensors to save."""
        return {name: tensor.detach() for name, tensor in (self.named() | self.buffers).items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the fp32 weights and the buffers of `state`, and publish the weights."""
        with torch.no_grad():
            for name, tensor in (self.named() | self.buffers).items():
                tensor.copy_(state[name])
        self.publish()


class LossScale:
    """The factor on the loss that keeps fp16 gradients from vanishing (arXiv 1710.03740, sec. 3.2), a power of two.

    Halved when gradients overflow, doubled after `PATIENCE` good steps: it follows what the run can bear.
    """

    FIRST, PATIENCE = 2.0**16, 2000

    def __init__(self) -> None:
        self.value, self.good = self.FIRST, 0

    def follow(self, overflow: bool) -> None:
        """Take in whether the gradients of a step overflowed."""
        self.good = 0 if overflow else self.good + 1
        if overflow:
            self.value /= 2
        elif self.good == self.PATIENCE:
            self.value, self.good = self.value * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """The scale, and the good steps since it changed."""
        return {"value": self.value, "good": self.good}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.value, self.good = state_dict["value"], state_dict["good"]
