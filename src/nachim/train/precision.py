"""Compute precision: fp32 throughout, or bf16 compute beside fp32 master weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nachim.model.decoder import tensors


class Masters:
    """The fp32 weights the optimizer owns, and their copy in the compute precision inside the model.

    In fp32 they are the same tensors. In bf16 the model is cast once a step, gradients are summed in fp32. What a
    model keeps beside its weights (its persistent buffers) stays in the model, in its own precision.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.compute = list(model.parameters())
        self.split = precision == "bf16"
        if self.split:
            self.weights: list[Tensor] = [p.detach().clone() for p in self.compute]
            model.to(torch.bfloat16)
        else:
            self.weights = list(self.compute)
        self.buffers = {name: held for name, held in tensors(model).items() if name not in self.names}

    def gather_gradients(self) -> None:
        """Move the gradients of one micro-batch onto the fp32 weights, adding to what is there."""
        if not self.split:
            return
        for master, weight in zip(self.weights, self.compute, strict=True):
            if weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                weight.grad = None

    def publish(self) -> None:
        """Copy the fp32 weights into the model, rounded to its precision."""
        if self.split:
            with torch.no_grad():
                torch._foreach_copy_(self.compute, self.weights)

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
