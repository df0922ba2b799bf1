"""A matrix in few bits as tensors, which is how it stands in files, and in memory where no kernel reads it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nachim.model.quantized.grid import Coded, Double, Grid
from nachim.spec import NF4, Int4, Int8
from nachim.spec.quantize import Scheme

DIVISOR = "divisor"
"""What inputs are divided by; only of matrices that have it."""


def tensors_of(coded: Coded) -> dict[str, Tensor]:
    """Codes, two to a byte where they have 4 bits, and scales; `coded_of` reads them."""
    grid, scheme = coded.grid, coded.grid.scheme
    codes = coded.codes_OI if isinstance(scheme, Int8) else paired(coded.codes_OI)
    found = {"codes": codes}
    if grid.double is not None:
        found |= {f"scale_{name}": tensor for name, tensor in grid.double._asdict().items()}
    else:
        found["scale"] = grid.scale_OG if isinstance(scheme, NF4) else grid.scale_OG.to(torch.bfloat16)
    if grid.zero_OG is not None:
        found["zero"] = grid.zero_OG.to(torch.uint8)
    if coded.divisor_I is not None:
        found[DIVISOR] = coded.divisor_I
    return found


def coded_of(tensors: Mapping[str, Tensor], scheme: Scheme) -> Coded:
    """The matrix that `tensors_of` gave these."""
    codes_OI = tensors["codes"] if isinstance(scheme, Int8) else parted(tensors["codes"])
    outputs, inputs = codes_OI.shape
    double = Double(*(tensors[f"scale_{name}"] for name in Double._fields)) if "scale_mean" in tensors else None
    scale = tensors["scale"].float() if double is None else double.decode().view(outputs, -1)
    zero = tensors["zero"].float() if "zero" in tensors else None
    return Coded(Grid(scheme, scale, zero, double, inputs), codes_OI, tensors.get(DIVISOR))


def shapes_of(scheme: Scheme, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a matrix [outputs, inputs], its divisor left out."""
    groups = inputs // scheme.width(inputs)
    found: dict[str, tuple[int, ...]] = {"codes": (outputs, inputs * scheme.bits // 8)}
    if isinstance(scheme, NF4) and scheme.double:
        count = outputs * groups
        return {**found, "scale_codes": (count,), "scale_scales": (-(-count // NF4.BLOCK),), "scale_mean": ()}
    zeroed = isinstance(scheme, Int4) and not scheme.symmetric
    return {**found, "scale": (outputs, groups), **({"zero": (outputs, groups)} if zeroed else {})}


def paired(codes_OI: Tensor) -> Tensor:
    """4-bit codes [O, I] as bytes [O, I / 2], the earlier column in the lower bits."""
    return codes_OI[:, ::2] | codes_OI[:, 1::2] << 4


def parted(bytes_OI: Tensor) -> Tensor:
    """The codes that `paired` put together."""
    return torch.stack((bytes_OI & 15, bytes_OI >> 4), -1).flatten(1)
