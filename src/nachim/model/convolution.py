"""The short causal convolution that mixers with a state put before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nachim.model.block import Memory
from nachim.model.frame import Frame


class Convolution(nn.Module):
    """Each channel's weighted sum of its last `width` tokens: y_t = bias + sum_j kernel[:, j] x_(t - width + 1 + j).

    What stands before a document counts as zero. `kernel` is [channels, width], its last column meets the token itself.
    """

    def __init__(self, channels: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def draw(self, generator: torch.Generator) -> None:
        """Uniform in +-1 / sqrt(width), as torch draws a convolution with one channel a group."""
        bound = self.kernel.shape[1] ** -0.5
        nn.init.uniform_(self.kernel, -bound, bound, generator=generator)

    def forward(self, x_BTC: Tensor, frame: Frame, memory: Memory | None = None, name: str = "convolution") -> Tensor:
        """[B, T, channels] to the same, in its precision; the last width - 1 inputs stay in `memory[name]`."""
        B, T, channels = x_BTC.shape
        past = self.kernel.shape[1] - 1
        before_BPC = None if memory is None else memory.get(name)
        if before_BPC is None:
            before_BPC = x_BTC.new_zeros(B, past, channels)
        padded_BSC = torch.cat((before_BPC, x_BTC), 1)
        own_BTP = frame.once(("taps", past), lambda: taps(frame, past))
        if memory is not None:
            kept_BPC = padded_BSC[:, T:]
            # The last token at distance 0, ..., past - 1: what the next one may still meet, oldest first.
            memory[name] = kept_BPC.clone() if own_BTP is None else kept_BPC * own_BTP[:, -1, :past].flip(-1)[..., None]
        bias_C = None if self.bias is None else self.bias.to(x_BTC.dtype)
        return _Convolve.apply(padded_BSC, self.kernel.to(x_BTC.dtype), bias_C, own_BTP)


def taps(frame: Frame, past: int) -> Tensor | None:
    """Whether the token 0, ..., `past` before each new one is of its document: bool [B, T, past + 1]; None where all.

    A past that only a memory holds counts as of the document: what is not was zeroed when it was kept.
    """
    begins_BT = frame.begins_BT
    if begins_BT is None:
        return None
    index_T = torch.arange(frame.T, device=frame.device)
    begin_BT = torch.where(begins_BT, index_T, -1 - past).cummax(1).values
    return torch.arange(past + 1, device=frame.device) <= (index_T - begin_BT)[..., None]


class _Convolve(torch.autograd.Function):
    """One multiply-add a tap, here and in the backward pass: left to autograd, each tap would copy the whole input."""

    @staticmethod
    def forward(
        ctx: Any, padded_BSC: Tensor, kernel_CW: Tensor, bias_C: Tensor | None, own_BTW: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(padded_BSC, kernel_CW, own_BTW)
        ctx.biased = bias_C is not None
        kernel_WC = kernel_CW.t().contiguous()
        last, T = len(kernel_WC) - 1, padded_BSC.shape[1] - len(kernel_WC) + 1
        x_BTC = padded_BSC[:, last:]
        y_BTC = x_BTC * kernel_WC[last] if bias_C is None else torch.addcmul(bias_C, x_BTC, kernel_WC[last])
        for tap in range(last):
            y_BTC.addcmul_(_masked(padded_BSC[:, tap : tap + T], own_BTW, last - tap), kernel_WC[tap])
        return y_BTC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTC: Tensor) -> tuple[Tensor | None, ...]:
        padded_BSC, kernel_CW, own_BTW = ctx.saved_tensors
        kernel_WC = kernel_CW.t().contiguous()
        last, T = len(kernel_WC) - 1, grad_BTC.shape[1]
        padded_grad_BSC, kernel_grad_WC = torch.empty_like(padded_BSC), torch.empty_like(kernel_WC)
        padded_grad_BSC[:, :last] = 0
        torch.mul(grad_BTC, kernel_WC[last], out=padded_grad_BSC[:, last:])
        product_BTC = torch.empty_like(grad_BTC)
        for tap in range(last + 1):
            met_BTC = _masked(grad_BTC, own_BTW, last - tap)
            if tap < last:
                padded_grad_BSC[:, tap : tap + T].addcmul_(met_BTC, kernel_WC[tap])
            kernel_grad_WC[tap] = torch.mul(met_BTC, padded_BSC[:, tap : tap + T], out=product_BTC).sum((0, 1))
        return padded_grad_BSC, kernel_grad_WC.t(), grad_BTC.sum((0, 1)) if ctx.biased else None, None


def _masked(x_BTC: Tensor, own_BTW: Tensor | None, distance: int) -> Tensor:
    return x_BTC if own_BTW is None or distance == 0 else x_BTC * own_BTW[..., distance, None]
