"""Quantised matrices as blocks of GGUF, code for code: llama.cpp computes with the values that our codes stand for.

A block is 32 weights of a row that follow one another, with one or two numbers in fp16 before them: d of Q8_0 (code d)
and Q4_0 ((code - 8) d), d and m of Q4_1 (code d + m). The layouts are those of ggml's `block_q8_0`, `block_q4_0` and
`block_q4_1`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType as FileType
from torch import Tensor

from nachim.model.quantized.spread import Spread
from nachim.spec import Int4, Int8, UserError
from nachim.spec.quantize import Scheme

BLOCK = 32
FILES = {Kind.Q8_0: FileType.MOSTLY_Q8_0, Kind.Q4_0: FileType.MOSTLY_Q4_0, Kind.Q4_1: FileType.MOSTLY_Q4_1}


class Low(NamedTuple):
    """A quantised model's scales, and what codes of 0 stand for, spread over all weights: NaN of what was kept."""

    kind: Kind
    scales: Mapping[str, Tensor]
    lows: Mapping[str, Tensor]


def kind_of(scheme: Scheme) -> Kind:
    """The kind of block for Int8 or Int4. Raises UserError where groups do not fit blocks."""
    if isinstance(scheme, Int4) and scheme.group % BLOCK:
        raise UserError(f"weights in groups of {scheme.group} do not fit GGUF, whose blocks of {BLOCK} share a scale")
    return Kind.Q8_0 if isinstance(scheme, Int8) else Kind.Q4_0 if scheme.symmetric else Kind.Q4_1


def low_of(model: Spread) -> Low:
    """What GGUF's blocks are made of."""
    return Low(kind_of(model.scheme), model.scales, model.lows)


def blocks(name: str, kind: Kind, value: Tensor, scale: Tensor, low: Tensor) -> npt.NDArray[np.uint8]:
    """The bytes of a matrix [..., O, I] whose values are code times scale, plus `low`: [..., O, bytes of a row].

    Raises UserError where blocks do not divide its rows.
    """
    if value.shape[-1] % BLOCK:
        raise UserError(f"{name} has {value.shape[-1]} inputs, which GGUF's blocks of {BLOCK} do not divide")
    value_NB, scale_N1, low_N1 = (
        tensor.float().reshape(-1, BLOCK).numpy()[:, :count] for tensor, count in ((value, BLOCK), (scale, 1), (low, 1))
    )
    step_N1 = np.where(scale_N1 == 0, 1, scale_N1)
    head = [scale_N1.astype(np.float16).view(np.uint8)]
    if kind is Kind.Q8_0:
        body = np.rint(value_NB / step_N1).astype(np.int8).view(np.uint8)
    else:
        codes_NB = np.rint((value_NB - low_N1) / step_N1).astype(np.uint8)
        body = codes_NB[:, : BLOCK // 2] | codes_NB[:, BLOCK // 2 :] << 4
        head += [low_N1.astype(np.float16).view(np.uint8)] if kind is Kind.Q4_1 else []
    found: Any = np.concatenate([*head, body], 1)
    return found.reshape(*value.shape[:-1], -1)
