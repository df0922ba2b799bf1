"""Products with matrices in few bits.

On a CPU in bf16, codes are multiplied by as they are, those of four bits by a kernel of our own where there is one, by
torch's otherwise; elsewhere a matrix is decoded for each product.
Either way a row's result does not depend on the rows beside it: the kernels are tried for that, and dense products are
those of whoever calls, who may put his own in their place (`nachim.infer.invariant`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.decoder import DecoderModule
from nachim.model.kernels import CodedKernel
from nachim.model.moe import Stack
from nachim.model.quantized.codes import coded_of, tensors_of
from nachim.model.quantized.grid import LEVELS, MIDDLE, Coded
from nachim.spec import NF4, Int4, Int8

WIDTHS = (32, 64, 128, 256)
"""Groups that torch's int4 kernel knows."""
ROWS4 = 16
"""What it wants outputs to be a multiple of."""
ALIGNED8 = 16
"""Bytes that its int8 kernel wants rows to begin at multiples of."""
TILE = 16
"""Rows that are multiplied at once by a kernel whose bits depend on their number."""
TRIED = (1, 2, 3, 5, 8, 16, 33)
LEFT = ("router", "kv_up")
"""Matrices that are not only multiplied by, or whose last bits decide who works on a token."""


class Decoding(nn.Module):
    """A matrix that is decoded for each product."""

    def __init__(self, coded: Coded) -> None:
        super().__init__()
        self.scheme = coded.grid.scheme
        for name, tensor in tensors_of(Coded(coded.grid, coded.codes_OI)).items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        weight_OI = coded_of(dict(self.named_buffers()), self.scheme).decode()
        return F.linear(x, weight_OI.to(x.dtype))


class Int8Kernel(nn.Module):
    """torch's product of bf16 and int8 codes; scales are multiplied in by the kernel."""

    def __init__(self, coded: Coded) -> None:
        super().__init__()
        self.register_buffer("codes", coded.codes_OI.clone(), persistent=False)  # in a file it may begin anywhere
        self.register_buffer("scale", coded.grid.scale_OG[:, 0].to(torch.bfloat16), persistent=False)

    def forward(self, x_RI: Tensor) -> Tensor:
        """[R, in] to [R, out]."""
        return torch._weight_int8pack_mm(x_RI, self.codes, self.scale)


class Int4Kernel(nn.Module):
    """torch's product of bf16 and int4 codes, which it wants in an order of its own; a value is (code - 8) a + b."""

    def __init__(self, coded: Coded) -> None:
        super().__init__()
        grid = coded.grid
        self.width = grid.scheme.width(grid.inputs)
        packed = torch._convert_weight_to_int4pack_for_cpu(coded.codes_OI.int(), 1)
        shift = torch.zeros(()) if grid.zero_OG is None else MIDDLE - grid.zero_OG
        both = torch.stack((grid.scale_OG, grid.scale_OG * shift), -1)
        self.register_buffer("codes", packed, persistent=False)
        self.register_buffer("scales", both.transpose(0, 1).to(torch.bfloat16).contiguous(), persistent=False)

    def forward(self, x_RI: Tensor) -> Tensor:
        """[R, in] to [R, out]."""
        return torch._weight_int4pack_mm_for_cpu(x_RI, self.codes, self.width, self.scales)


class LowBitLinear(nn.Module):
    """A linear layer whose matrix is in few bits, for activations in `dtype`."""

    def __init__(self, coded: Coded, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.outputs, self.inputs = coded.codes_OI.shape
        self.bias = bias
        divisor = None if coded.divisor_I is None else coded.divisor_I.to(dtype)
        self.register_buffer("divisor_I", divisor, persistent=False)
        found = kernel_of(coded) if dtype == torch.bfloat16 and coded.codes_OI.device.type == "cpu" else None
        self.product = found or Decoding(coded)
        self.by_kernel = found is not None
        self.steady = found is None or steady(found, self.inputs)

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, bias={self.bias is not None}"

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], each row as if it were alone."""
        if self.divisor_I is not None:
            x = x / self.divisor_I
        if not self.by_kernel:
            y = self.product(x)
        else:
            x_RI = x.reshape(-1, self.inputs)
            y_RO = self.product(x_RI) if self.steady else tiled(self.product, x_RI)
            y = y_RO.view(*x.shape[:-1], self.outputs)
        return y if self.bias is None else y + self.bias


class LowBitStack(nn.Module):
    """The matrices of a layer's experts in few bits; `Stack` with the same biases."""

    def __init__(self, coded: Sequence[Coded], bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.experts = nn.ModuleList(LowBitLinear(one, None, dtype) for one in coded)
        self.bias = bias

    def forward(self, x_RI: Tensor, load_X: Tensor) -> Tensor:
        """Rows [R, in], sorted by expert, of which the first `load_X[0]` are the first expert's, to [R, out]."""
        pieces = zip(self.experts, x_RI.split(load_X.tolist()), strict=True)
        y_RO = torch.cat([expert(rows) for expert, rows in pieces if len(rows)])
        return y_RO if self.bias is None else y_RO + self.bias.repeat_interleave(load_X, 0, output_size=len(y_RO))


Kernel = Int8Kernel | Int4Kernel | CodedKernel


def kernel_of(coded: Coded) -> Kernel | None:
    """The kernel that multiplies by a matrix on this CPU, where there is one."""
    scheme = coded.grid.scheme
    if isinstance(scheme, Int8):
        return Int8Kernel(coded) if coded.grid.inputs % ALIGNED8 == 0 else None
    if CodedKernel.takes(coded.codes_OI, scheme.width(coded.grid.inputs)):
        return own(coded)
    if isinstance(scheme, Int4) and scheme.group in WIDTHS and len(coded.codes_OI) % ROWS4 == 0:
        return Int4Kernel(coded)
    return None


def own(coded: Coded) -> CodedKernel:
    """Our kernel for a matrix in four bits; of NF4 the groups' magnitudes are rounded to bf16."""
    grid = coded.grid
    table = torch.tensor(LEVELS) if isinstance(grid.scheme, NF4) else None
    return CodedKernel(coded.codes_OI, grid.scale_OG, grid.zero_OG, table)


_STEADY: dict[tuple[object, ...], bool] = {}


def steady(product: Kernel, inputs: int) -> bool:
    """Whether products by matrices of this shape give rows the same bits however many rows there are; tried once.

    Threads share the work, and another number of them may share it in another way.
    """
    key = (type(product), tuple(product.codes.shape), torch.get_num_threads())
    if key not in _STEADY:
        generator = torch.Generator().manual_seed(0)
        x_RI = torch.randn(max(TRIED), inputs, generator=generator).to(torch.bfloat16)
        whole_RO = product(x_RI)
        _STEADY[key] = all(torch.equal(product(x_RI[-rows:].contiguous()), whole_RO[-rows:]) for rows in TRIED)
    return _STEADY[key]


def tiled(product: nn.Module, x_RI: Tensor) -> Tensor:
    """The product, `TILE` rows at a time, the last ones filled up with zeros."""
    padded_RI = F.pad(x_RI, (0, 0, 0, -len(x_RI) % TILE))
    return torch.cat([product(tile) for tile in padded_RI.split(TILE)])[: len(x_RI)]


def matrices(model: nn.Module) -> dict[str, nn.Linear | Stack]:
    """The layers whose matrices can be put into few bits, by the names of their weights: all of the blocks but `LEFT`.

    Embedding and head, norms, biases, convolutions and states, and modules that guess ahead, stay as they are.
    """
    found = {f"{name}.weight": module for name, module in model.named_modules() if name.startswith("blocks.")}
    return {
        name: module
        for name, module in found.items()
        if isinstance(module, nn.Linear | Stack) and name.split(".")[-2] not in LEFT and module.weight.shape[-2] > 1
    }


def put(model: DecoderModule, coded: Mapping[str, Sequence[Coded]]) -> DecoderModule:
    """The same model with these matrices, by the names of their weights, in few bits: one, or one for each expert."""
    dtype = model.embedding.weight.dtype
    for name, each in coded.items():
        path = name.removesuffix(".weight")
        parent, _, own = path.rpartition(".")
        module = model.get_submodule(path)
        form = (
            LowBitStack(each, module.bias, dtype)
            if isinstance(module, Stack)
            else LowBitLinear(each[0], module.bias, dtype)
        )
        setattr(model.get_submodule(parent), own, form)
    return model
