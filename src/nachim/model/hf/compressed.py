"""Quantised models in the layout of compressed-tensors, which transformers and vLLM open.

Its format of weights alone is `pack-quantized`: eight codes of int4, or four of int8, to an int32, the first in the
lowest bits; scales [O, G], of int8 [O, 1]; and zeros of asymmetric groups packed the same way down the columns. Codes
and zeros count from the middle there, -8 to 7 and -128 to 127, and are stored from 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nachim.model.hf.checkpoint import CONFIG, theirs_of
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.source import write_tensors
from nachim.model.quantized.spread import Spread
from nachim.spec import Decoder, Int4, Int8, UserError
from nachim.spec.disk import write_text
from nachim.spec.quantize import Scheme

WORD = 32
MIDDLE8 = 128


def write_compressed(out: Path, family: Family, values: dict[str, Any], decoder: Decoder, model: Spread) -> None:
    """Write config.json and the tensors of a quantised model into the folder `out` in a family's names.

    Raises UserError where a family's matrix is not one of rows that were quantised.
    """
    ignored, found = [], {}
    for one in family.rules_for(decoder, Config(values)):
        three = [theirs_of(one, each) for each in (model.values, model.scales, model.lows)]
        for name, value in three[0].items():
            scale, low = three[1][name], three[2][name]
            if value.ndim > 1 and not scale.isnan().any():
                found |= dict(coded(name, model.scheme, value, scale, low))
            else:
                found[name] = value
                ignored += [name.removesuffix(".weight")] if value.ndim > 1 else []
    size = sum(tensor.nbytes for tensor in found.values())
    write_tensors(out, [(size, lambda: found)])
    told = {**values, "quantization_config": facts(model.scheme, ["lm_head", *ignored])}
    write_text(out / CONFIG, json.dumps(told, indent=2, sort_keys=True) + "\n")


def coded(name: str, scheme: Scheme, value: Tensor, scale: Tensor, low: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that stand for a matrix [O, I] of values, with the scale of each and what a code of 0 stands for."""
    base = name.removesuffix("weight")
    if value.ndim != 2 or value.shape[1] % scheme.width(value.shape[1]):
        raise UserError(f"{name} is no matrix of rows, and compressed-tensors has no layout for it")
    width = scheme.width(value.shape[1])
    scale_OGW = scale.view(len(value), -1, width)
    if not torch.equal(scale_OGW, scale_OGW[..., :1].expand_as(scale_OGW)):
        raise UserError(f"{name} has its scales down its columns, and compressed-tensors has no layout for that")
    step_OI = torch.where(scale == 0, 1.0, scale)
    scale_OG = scale_OGW[..., 0].to(torch.bfloat16).clone()
    codes_OI = ((value - low) / step_OI).round() + (MIDDLE8 if isinstance(scheme, Int8) else 0)
    yield f"{base}weight_packed", packed(codes_OI, scheme.bits)
    yield f"{base}weight_scale", scale_OG
    yield f"{base}weight_shape", torch.tensor(value.shape)
    if isinstance(scheme, Int4) and not scheme.symmetric:
        zero_OG = (-low / step_OI).view(scale_OGW.shape)[..., 0].round()
        yield f"{base}weight_zero_point", packed(zero_OG.mT, scheme.bits).mT.contiguous()


def packed(codes_OI: Tensor, bits: int) -> Tensor:
    """Codes of `bits` from 0 up [O, I] as int32 [O, I * bits / 32, rounded up], the first in the lowest bits."""
    each = WORD // bits
    codes_OI = F.pad(codes_OI.long(), (0, -codes_OI.shape[1] % each))
    words_OW = (codes_OI.unflatten(1, (-1, each)) << bits * torch.arange(each)).sum(-1)
    return words_OW.to(torch.uint32).view(torch.int32)


def facts(scheme: Scheme, ignored: list[str]) -> dict[str, Any]:
    """What config.json says of the codes."""
    whole = isinstance(scheme, Int8)
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": whole or scheme.symmetric,
        "strategy": "channel" if whole else "group",
        "group_size": None if whole else scheme.group,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": sorted(set(ignored)),
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
