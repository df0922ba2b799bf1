"""Products of bf16 on CPUs with AVX-512 (its parts for bf16 and for whole numbers), by kernels of our own.

`kernels.cpp` is compiled once, by the C++ compiler of this machine, into the user's cache folder. Where there is none,
or the CPU is another, `library` is None and whoever asks uses torch's.
"""

from __future__ import annotations

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model import native
from nachim.spec import UserError

FLAGS = ("-O3", *(f"-m{part}" for part in ("avx512f", "avx512bw", "avx512vl", "avx512bf16", "avx512vnni", "fma")))
FLAGS = (*FLAGS, "-ffp-contract=off")
WIDE, LANES, UNIT = 32, 16, 8
"""Outputs of a block in bf16; outputs of a block of codes, and inputs of one unit of them."""
WHOLE = 32
"""What the number of inputs that share a scale must be a multiple of."""


def fits() -> bool:
    """Whether this CPU has what the kernels are compiled for."""
    return torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported()


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, compiled where they were not; None, with one warning where that failed, if there are none."""
    if not fits():
        return None
    found = native.library("kernels.cpp", FLAGS, "products in bf16 and in four bits are torch's, slower for few rows")
    if found is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_long
    found.dense_product.argtypes = [*[pointer] * 4, *[number] * 4, ctypes.c_int]
    found.coded_product.argtypes = [*[pointer] * 6, *[number] * 4, ctypes.c_int]
    found.norm_rows.argtypes = [*[pointer] * 3, *[number] * 2, ctypes.c_float, ctypes.c_int, ctypes.c_int]
    found.dense_product.restype = found.coded_product.restype = found.norm_rows.restype = None
    return found


class DenseKernel:
    """Products by a bf16 matrix [O, I], I even, packed for the kernel.

    Each `piece` of the inputs is summed in fp32, and then these sums are: all inputs are one piece where it is None.
    """

    def __init__(self, weight_OI: Tensor, piece: int | None = None) -> None:
        self.outputs, self.inputs = weight_OI.shape
        self.piece = piece or self.inputs
        pairs = weight_OI.detach().contiguous().view(torch.int32)  # two inputs each
        blocks = F.pad(pairs, (0, 0, 0, -self.outputs % WIDE)).view(-1, WIDE, self.inputs // 2)
        self.packed = blocks.transpose(1, 2).contiguous()

    @staticmethod
    def takes(weight: Tensor) -> bool:
        """Whether there is a kernel for products by this matrix."""
        kind = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.ndim == 2
        return kind and weight.shape[1] % 2 == 0 and library() is not None

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., I] to [..., O]; a bias is added before the result is rounded."""
        _check(x)
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.outputs)
        added = None if bias is None else bias.data_ptr()
        sizes = x.numel() // self.inputs, self.inputs, self.outputs, self.piece, torch.get_num_threads()
        library().dense_product(x.data_ptr(), self.packed.data_ptr(), added, y.data_ptr(), *sizes)
        return y


class CodedKernel(nn.Module):
    """Products of bf16 by a matrix in four bits: its weights are (code - zero) times scale, or table[code] times scale.

    Codes [O, I] are 0 to 15; scales and, where they are, zeros [O, G] are of the G groups of a row: numbers of bf16,
    and whole numbers from 0 to 15, 8 where there are none. `table` [16] is in fp32. Without one, what is multiplied is
    rounded to 16 bits, the largest of the inputs that share a scale being 32,639.
    """

    def __init__(
        self, codes_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor | None = None, table: Tensor | None = None
    ) -> None:
        super().__init__()
        self.outputs, self.inputs = codes_OI.shape
        self.group, self.table = self.inputs // scale_OG.shape[1], table
        units = codes_OI.reshape(-1, LANES, self.inputs // UNIT, 2, UNIT // 2).transpose(1, 2)
        held = {
            "codes": units[..., 0, :] | units[..., 1, :] << 4,
            "scale": _blocks(scale_OG).to(torch.bfloat16),
            "zero": None if zero_OG is None else _blocks(zero_OG).to(torch.int8),
        }
        for name, tensor in held.items():
            self.register_buffer(name, None if tensor is None else tensor.contiguous(), persistent=False)

    @staticmethod
    def takes(codes_OI: Tensor, group: int) -> bool:
        """Whether there is a kernel for a matrix of these codes and groups."""
        sized = len(codes_OI) % LANES == 0 and group % WHOLE == 0
        return sized and codes_OI.device.type == "cpu" and library() is not None

    def forward(self, x_RI: Tensor) -> Tensor:
        """[R, in] to [R, out]."""
        _check(x_RI)
        if not (x_RI.is_cpu and self.codes.is_cpu):
            raise UserError("these weights were packed for the CPU: open the model again to use it on another device")
        x_RI = x_RI.contiguous()
        y_RO = x_RI.new_empty(len(x_RI), self.outputs)
        held = (None if one is None else one.data_ptr() for one in (self.codes, self.scale, self.zero, self.table))
        sizes = len(x_RI), self.inputs, self.outputs, self.group, torch.get_num_threads()
        library().coded_product(x_RI.data_ptr(), *held, y_RO.data_ptr(), *sizes)
        return y_RO


class NormKernel:
    """RMSNorm over the last axis in one pass, in fp32 or bf16; its sums have torch's order with so many `lanes`."""

    def __init__(self, module: nn.RMSNorm, lanes: int) -> None:
        self.module, self.lanes = module, lanes
        self.narrow = module.weight.dtype == torch.bfloat16

    def __call__(self, x: Tensor) -> Tensor:
        """The last axis normalised; what does not stand in one piece of memory, or is of another kind, by torch."""
        gain, width = self.module.weight, x.shape[-1]
        if not (x.is_contiguous() and x.dtype == gain.dtype):
            return self.module(x)
        y = torch.empty_like(x)
        sizes = x.numel() // width, width, self.module.eps, self.lanes, self.narrow
        library().norm_rows(x.data_ptr(), gain.data_ptr(), y.data_ptr(), *sizes)
        return y


def _blocks(each_OG: Tensor) -> Tensor:
    """What groups share, [O / 16, G, 16]."""
    return each_OG.unflatten(0, (-1, LANES)).transpose(1, 2)


def _check(x: Tensor) -> None:
    """The kernels read memory as they are told: nobody else would notice."""
    if x.dtype != torch.bfloat16:
        raise TypeError(f"weights in bf16 or packed for bf16 multiply bfloat16, not {x.dtype}")
