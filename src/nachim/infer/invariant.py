"""Kernels whose result for a row does not depend on the rows beside it.

Matrix products are what differs: MKL picks one form for 1 row, another for 2 to 15 and a third from 16 on, each with
its own order of adding. oneDNN's on weights packed beforehand gives, measured on every shape at start (`steady`), the
same bits for any number of rows from 2 on, and is faster than MKL's for a few; where that does not hold, rows are given
to the product `TILE` at a time, always. In bf16 a kernel of our own, where there is one, gives oneDNN's bits (`piece`,
measured too) and is faster still. Elementwise functions differ too: torch computes them in vectors of 32 values
and what is left over one by one, with another exponential. Here there is nothing left over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nachim.model.kernels import DenseKernel, NormKernel, library

TILE = 16
"""Rows of a product that is not steady by itself."""
TRIED = (1, 2, 3, 8, 15, 16, 17, 33, 64)
"""Numbers of rows that must agree bit for bit before packed products count as steady; one may be another kernel."""
DRAWN = 257
"""Rows of a weight that are drawn to try products on; those after them are the same ones again."""
PIECES = (1024, 512, 256, 2048, 1 << 30)
"""Inputs that oneDNN may add up at once."""
VALUES, PIECE = 32, 1 << 15
"""Values an elementwise kernel takes at once, and how many one thread takes alone."""
CURVED = (
    F.silu,
    F.gelu,
    F.softplus,
    F.logsigmoid,
    torch.exp,
    torch.tanh,
    torch.sigmoid,
    torch.expm1,
    torch.log1p,
    torch.sin,
    torch.cos,
    Tensor.exp,
    Tensor.expm1,
    Tensor.tanh,
    Tensor.sigmoid,
    Tensor.sin,
    Tensor.cos,
)
"""Functions of single values that are computed by other formulas in vectors than alone."""


FEW, LARGE = range(4, 33), 1 << 19
"""For so many rows, and weights of so many values in fp32, the packed product is faster than MKL's."""


def filled(rows: int) -> int:
    """The number of rows, at most a quarter more, that oneDNN is given for so many: it makes code for each number of
    rows, and keeps it. There are four such numbers between a power of two and the next."""
    step = max(1, 1 << (rows - 1).bit_length() >> 3)
    return -(-rows // step) * step


class Reordered:
    """A product by a weight [out, in] that oneDNN packed, of at least `fewest` rows."""

    def __init__(self, weight: Tensor, fewest: int = 1) -> None:
        self.packed, (self.outputs, self.width) = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), weight.shape
        self.fewest = fewest

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., in] to [..., out]; a bias is added before the result is rounded."""
        rows = x.numel() // self.width
        wanted = filled(max(rows, self.fewest))
        if wanted == rows:
            return _multiply(x.contiguous(), self.packed, bias)
        x_RD = F.pad(x.reshape(rows, self.width), (0, 0, 0, wanted - rows))
        return _multiply(x_RD, self.packed, bias)[:rows].view(*x.shape[:-1], self.outputs)


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")


Product = Callable[..., Tensor]
"""What a linear layer's weight does: x and a bias, or none, to their product and sum."""


def _trial(shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight [out, in] and rows to try products on."""
    generator = torch.Generator().manual_seed(0)
    # Rows of a weight may be alike, its columns not: sums over them are what is compared. To draw all takes longer.
    few = torch.randn(min(shape[0], DRAWN), shape[1], generator=generator).to(dtype)
    return few[torch.arange(shape[0]) % DRAWN], torch.randn(max(TRIED), shape[1], generator=generator).to(dtype)


@functools.cache
def steady(shape: tuple[int, int], dtype: torch.dtype, threads: int) -> int:
    """From how many rows on packed products by weights [out, in] give rows the same bits; 0 where never.

    `threads` share the work, and may share it in another way.
    """
    weight, x_RD = _trial(shape, dtype)
    product = Reordered(weight)
    whole = product(x_RD)
    same = {n: torch.equal(product(x_RD[-n:]), whole[-n:]) for n in TRIED}
    return 1 if all(same.values()) else 2 * all(same[n] for n in TRIED if n > 1)


@functools.cache
def piece(shape: tuple[int, int], threads: int) -> int | None:
    """How many inputs training's bf16 product by weights [out, in] adds up at once, as our kernel then does.

    None where none of `PIECES` gives its bits for two rows and more. Columns of the weight stand twice, with opposite
    signs: what is left of sums that would be 0 tells every order of adding from every other.
    """
    weight, x_RD = _trial((shape[0], shape[1] // 2), torch.bfloat16)
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(0))
    weight, x_RD = torch.cat((weight, -weight), 1)[:, order], torch.cat((x_RD, x_RD), 1)[:, order]
    rows = x_RD, x_RD[:2]
    wanted = [F.linear(x, weight) for x in rows]
    for size in PIECES:
        kernel = DenseKernel(weight, size)
        if all(torch.equal(kernel(x), y) for x, y in zip(rows, wanted, strict=True)):
            return size
    return None


@functools.cache
def lanes(width: int, dtype: torch.dtype) -> int | None:
    """How many values torch's RMSNorm squares and adds up at once, as our kernel then does; None if neither of two."""
    x_RD = torch.randn(max(TRIED), width, generator=torch.Generator().manual_seed(0)).to(dtype)
    norm = nn.RMSNorm(width, eps=1e-6, dtype=dtype)
    with torch.no_grad():
        norm.weight.copy_(x_RD[0])
    wanted = norm(x_RD)
    for count in (8, 16):
        kernel = NormKernel(norm, count)
        if all(torch.equal(kernel(x_RD[-n:]), wanted[-n:]) for n in TRIED):
            return count
    return None


def normed(module: nn.RMSNorm) -> Callable[[Tensor], Tensor]:
    """An RMSNorm with as few calls as can be, the same bits."""
    weight, eps = module.weight, module.eps
    kind = weight is not None and weight.ndim == 1 and weight.dtype in (torch.float32, torch.bfloat16)
    if not kind or eps is None or weight.device.type != "cpu" or library() is None:
        return module
    found = lanes(len(weight), weight.dtype)
    return NormKernel(module, found) if found else module


class Linears:
    """`F.linear` on weights that were packed beforehand; biases are added by the kernel.

    `invariant` to the number of rows; otherwise whichever kernel is the faster, measured on a Xeon with AVX-512.
    """

    def __init__(self, invariant: bool) -> None:
        self.invariant = invariant
        self.named: dict[int, Product | None] = {}
        self.placed: dict[tuple[int, tuple[int, ...]], Product | None] = {}
        self.kept: list[Tensor] = []

    def pack(self, weight: Tensor) -> None:
        """Pack a weight that will stay, if that serves."""
        self.kept.append(weight)  # so that nothing else comes to stand in its place
        self.named[id(weight)] = self.placed[_key(weight)] = self._packed(weight)

    def _packed(self, weight: Tensor) -> Product | None:
        shape, threads = tuple(weight.shape), torch.get_num_threads()
        if DenseKernel.takes(weight) and ((size := piece(shape, threads)) or not self.invariant):
            return DenseKernel(weight, size)
        if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return None
        if not self.invariant:
            return Reordered(weight) if weight.dtype != torch.float32 or weight.numel() >= LARGE else None
        fewest = steady(shape, weight.dtype, threads)
        return Reordered(weight, fewest) if fewest else None

    def of(self, module: nn.Linear) -> Callable[[Tensor], Tensor]:
        """What a linear layer does, as a function of [..., in] alone."""
        weight, bias = module.weight, module.bias
        product = self.named[id(weight)]
        if product is None:
            return functools.partial(self if self.invariant else F.linear, weight=weight, bias=bias)
        if self.invariant or weight.dtype != torch.float32:
            return functools.partial(product, bias=bias)
        width = weight.shape[1]

        def fastest(x: Tensor) -> Tensor:
            return product(x, bias) if x.numel() // width in FEW else F.linear(x, weight, bias)

        return fastest

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., in] to [..., out], each row as if it were alone."""
        product = self.named.get(id(weight)) or self.placed.get(_key(weight))
        if product is not None:
            return product(x, bias)
        return tiled(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def _key(weight: Tensor) -> tuple[int, tuple[int, ...]]:
    return weight.data_ptr(), tuple(weight.shape)


def tiled(x_RD: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product, `TILE` rows at a time, the last ones filled up with zeros."""
    rows = len(x_RD)
    padded_RD = F.pad(x_RD, (0, 0, 0, -rows % TILE))
    return torch.cat([F.linear(tile, weight, bias) for tile in padded_RD.split(TILE)])[:rows]


def even(function: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An elementwise function in whole vectors only, and in pieces that one thread takes."""
    if "out" in kwargs:
        return kwargs.pop("out").copy_(even(function, x, *args, **kwargs))
    if x.device.type != "cpu":
        return function(x, *args, **kwargs)
    size = x.numel()
    if size % VALUES == 0 and size <= PIECE:
        return function(x.contiguous(), *args, **kwargs)
    padded = F.pad(x.reshape(-1), (0, -size % VALUES))
    done = torch.cat([function(piece, *args, **kwargs) for piece in padded.split(PIECE)])
    return done[:size].view(x.shape)


def by_row(equation: str, *operands: Tensor) -> Tensor:
    """`torch.einsum` of each row of the batch, axis b, by itself: it may make b rows of one product."""
    terms = equation.split("->")[0].split(",")
    split = [operand.split(1) if term[0] == "b" else None for term, operand in zip(terms, operands, strict=True)]
    rows = next((len(parts) for parts in split if parts is not None), 1)
    if rows == 1:
        return torch.einsum(equation, *operands)
    chosen = (
        [whole if parts is None else parts[row] for parts, whole in zip(split, operands, strict=True)]
        for row in range(rows)
    )
    return torch.cat([torch.einsum(equation, *row) for row in chosen])


class Invariant(TorchFunctionMode):
    """Within it, linear layers are those of this file; for `rows` of several sequences, other functions are too."""

    def __init__(self, linears: Linears, rows: bool) -> None:
        super().__init__()
        self.forms: dict[Any, Callable[..., Any]] = {F.linear: linears}
        if rows:
            self.forms |= {curve: functools.partial(even, curve) for curve in CURVED}
            self.forms[torch.einsum] = by_row

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        form = self.forms.get(function, function)
        return form(*args, **kwargs) if kwargs else form(*args)


def packed(model: nn.Module, invariant: bool) -> Linears:
    """The linear layers of a model, packed: those weights stand in memory twice."""
    linears = Linears(invariant)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            linears.pack(weight)
        elif invariant and isinstance(weight, Tensor) and weight.ndim == 3:  # a stack of experts' matrices
            for matrix in weight.unbind(0):
                linears.pack(matrix)
    return linears
