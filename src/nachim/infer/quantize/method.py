"""A whole model in few bits by what its matrices read: GPTQ or AWQ, block after block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nachim.infer.quantize.awq import clipped, divided, scaled
from nachim.infer.quantize.calibrate import Progress, Sight, calibrate
from nachim.infer.quantize.fold import joints
from nachim.infer.quantize.gptq import gptq
from nachim.model import DecoderModule
from nachim.model.quantized.grid import Coded, nearest
from nachim.spec.quantize import Scheme

CodedBy = Callable[[nn.Module, Sight, Scheme], dict[str, list[Coded]]]
"""The matrices of a block by name: one, or one for every expert."""


@torch.no_grad()
def quantised(
    model: DecoderModule,
    names: Collection[str],
    scheme: Scheme,
    method: Literal["gptq", "awq"],
    ids_NT: npt.NDArray[np.int64],
    progress: Progress | None = None,
) -> dict[str, list[Coded]]:
    """The weights `names` ("blocks.0.ffn.down.weight") in few bits, for text like the sequences [N, T].

    Of a stack there are several, one for every expert.
    The model becomes the quantised one: its matrices are the decoded values, and AWQ's factors stand in its gains and
    rows, so that every other weight must be kept with the codes. What no sequence reached is rounded to nearest.
    Raises UserError as `fit` and `calibrate` do.
    """
    coded: dict[str, list[Coded]] = {}
    by: CodedBy = by_awq if method == "awq" else by_gptq

    def change(layer: int, block: nn.Module, sight: Sight) -> None:
        wanted = {name: seen for name, seen in sight.items() if f"blocks.{layer}.{name}.weight" in names}
        for name, each in by(block, wanted, scheme).items():
            coded[f"blocks.{layer}.{name}.weight"] = each
            _put(block.get_submodule(name), each)

    calibrate(model, ids_NT, change, progress)
    for name in names:
        if name not in coded:
            module = model.get_submodule(name.removesuffix(".weight"))
            coded[name] = [nearest(weight_OI, scheme) for weight_OI in _each(module)]
            _put(module, coded[name])
    return {name: coded[name] for name in names}


def by_gptq(block: nn.Module, sight: Sight, scheme: Scheme) -> dict[str, list[Coded]]:
    """The matrices of a block in `sight` by GPTQ."""
    return {
        name: [
            gptq(weight_OI, one.moments_II, scheme)
            for weight_OI, one in zip(_each(block.get_submodule(name)), seen, strict=True)
        ]
        for name, seen in sight.items()
    }


def by_awq(block: nn.Module, sight: Sight, scheme: Scheme) -> dict[str, list[Coded]]:
    """The matrices of a block in `sight` by AWQ. Factors go where nothing has to be done for them, or stay beside."""
    folded: set[int] = set()
    for joint in joints(block, sight):
        scaled(joint, scheme)
        folded |= {id(seen) for _, seen in joint.readers}
    return {
        name: _alike(
            clipped(weight_OI, one, scheme) if id(one) in folded else divided(weight_OI, one, scheme)
            for weight_OI, one in zip(_each(block.get_submodule(name)), seen, strict=True)
        )
        for name, seen in sight.items()
    }


def _alike(coded: Iterable[Coded]) -> list[Coded]:
    """The matrices of a stack, all with divisors where one has them: they are kept as one."""
    found = list(coded)
    if all(one.divisor_I is None for one in found):
        return found
    ones = torch.ones(found[0].codes_OI.shape[1], device=found[0].codes_OI.device)
    return [one if one.divisor_I is not None else replace(one, divisor_I=ones) for one in found]


def _each(module: nn.Module) -> list[Tensor]:
    """The matrices [O, I] of a linear module or of a stack."""
    weight = module.weight.data
    return list(weight) if weight.ndim == 3 else [weight]


def _put(module: nn.Module, coded: list[Coded]) -> None:
    for weight_OI, one in zip(_each(module), coded, strict=True):
        weight_OI.copy_(one.decode())
