"""What stands between the products of a training step on a CPU, each as one function with a gradient of its own.

A small model's step on a CPU is hundreds of operations of a few microseconds each, its norms and turns being the most.
`fused.cpp` does each of them in one pass, in fp32. Where there is no C++ compiler, and for whatever these functions do
not know, what they stand for is made of torch's operations as everywhere else, equal to rounding.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nachim.model import native

LEVELS = {"AVX512": "-march=x86-64-v4", "AVX2": "-march=x86-64-v3"}
"""What torch calls the instructions of a CPU, and what compilers do."""
BLOCK, WIDEST = 64, 1024
"""Rows that are summed by themselves, and the most numbers of a head: as in `fused.cpp`."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The functions, compiled where they were not; None, with one warning, where that failed."""
    level = LEVELS.get(torch.backends.cpu.get_cpu_capability())
    found = native.library(
        "fused.cpp", ["-O3"] if level is None else ["-O3", level], "small models train slower on this CPU"
    )
    if found is None:
        return None
    pointer, number, real, whole = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    arguments = {
        "norm_forward": [*[pointer] * 4, *[number] * 2, real, whole],
        "norm_backward": [*[pointer] * 6, *[number] * 2, whole],
        "heads_forward": [*[pointer] * 10, *[number] * 6, whole, real, whole],
        "heads_backward": [*[pointer] * 12, *[number] * 6, *[whole] * 2],
        "gate_forward": [*[pointer] * 2, *[number] * 2, whole],
        "gate_backward": [*[pointer] * 3, *[number] * 2, whole],
        "cross_entropy": [*[pointer] * 3, *[number] * 2, whole],
    }
    for name, types in arguments.items():
        getattr(found, name).argtypes = types
        getattr(found, name).restype = number if name == "cross_entropy" else None
    return found


def ready(*tensors: Tensor) -> bool:
    """Whether a gradient is wanted of fp32 tensors of a CPU that has these functions."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    plain = all(type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.dtype == torch.float32 for x in tensors)
    return plain and library() is not None


class Norm(torch.autograd.Function):
    """x [..., D] / sqrt(mean of squares + eps) gain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        y, factors = torch.empty_like(x), x.new_empty(rows)
        _call("norm_forward", x, gain, y, factors, rows, width, eps)
        ctx.save_for_backward(x, gain, factors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, factors = ctx.saved_tensors
        dx, sums = torch.empty_like(x), _sums(x, len(factors), x.shape[-1])
        _call("norm_backward", dy.contiguous(), x, gain, factors, dx, sums, len(factors), x.shape[-1])
        return dx, sums.sum(0), None


class Heads(torch.autograd.Function):
    """Queries [B, H, T, E], keys and values [B, K, T, E], as attention reads them, from [B, T, (H + 2 K) E].

    With `shifted` keys there are K heads more: what each token gives to the key of the token after it, unless that one
    begins a document (`begins_BT`). Then queries and keys are normed, where there are `gains` for both, and turned,
    where there is a `turn` of cosines and sines, [T, E] or [B, 1, T, E] (see `nachim.model.position.rotate`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        eps: float,
        turn: tuple[Tensor, Tensor] | None,
        begins_BT: Tensor | None,
        heads: tuple[int, int, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = qkv.shape
        H, K, shifted = heads
        E = qkv.shape[-1] // (H + (2 + shifted) * K)
        qkv = qkv.contiguous()
        q, k, v = (qkv.new_empty(B, T, count, E) for count in (H, K, K))
        factors = qkv.new_empty(B, T, H + K)
        cos, sin = (None, None) if turn is None else (table.contiguous() for table in turn)
        begins = None if begins_BT is None else begins_BT.contiguous().view(torch.uint8)
        ctx.sizes = B * T, T, H, K, E, 0 if cos is None or cos.ndim == 2 else T * E, shifted
        _call("heads_forward", qkv, q_gain, k_gain, cos, sin, begins, q, k, v, factors, *ctx.sizes, eps)
        ctx.save_for_backward(qkv, q_gain, k_gain, cos, sin, begins, factors)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, q_gain, k_gain, cos, sin, begins, factors = ctx.saved_tensors
        tokens, E = ctx.sizes[0], ctx.sizes[4]
        back = [grad.transpose(1, 2).contiguous() for grad in grads]
        dqkv, sums = torch.empty_like(qkv), _sums(qkv, tokens, 2, E)
        _call("heads_backward", *back, qkv, q_gain, k_gain, cos, sin, begins, factors, dqkv, sums, *ctx.sizes)
        gains = (None, None) if q_gain is None else sums.sum(0)
        return dqkv, *gains, None, None, None, None


class Gate(torch.autograd.Function):
    """silu(gate) up, [..., F], of [..., 2 F] that holds gates and then ups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], width)
        _call("gate_forward", x, y, y.numel() // width, width)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx, width = torch.empty_like(x), x.shape[-1] // 2
        _call("gate_backward", dy.contiguous(), x, dx, dy.numel() // width, width)
        return dx


class CrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies, nat, of the logits `x_ND weight_VD^T`; targets of -100 have none.

    The gradient of the logits takes their place, so that they stand in memory once.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        logits_NV = x_ND @ weight_VD.mT
        nats_N = logits_NV.new_empty(len(logits_NV))
        if _call("cross_entropy", logits_NV, targets_N.contiguous(), nats_N, *logits_NV.shape):
            raise IndexError(f"a target is no word of {len(weight_VD)}")
        ctx.save_for_backward(x_ND, weight_VD, logits_NV)
        return nats_N.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_VD, share_NV = ctx.saved_tensors
        return (share_NV @ weight_VD).mul_(scale), (share_NV.mT @ x_ND).mul_(scale), None


def _sums(like: Tensor, rows: int, *shape: int) -> Tensor:
    """Zeros for the sums of each block of so many rows."""
    return like.new_zeros(-(-rows // BLOCK), *shape)


def _call(name: str, *arguments: Tensor | float | None) -> int | None:
    """Call a function with the addresses of tensors, which stand in one piece, and the number of threads."""
    given = (each.data_ptr() if isinstance(each, Tensor) else each for each in arguments)
    return getattr(library(), name)(*given, torch.get_num_threads())
