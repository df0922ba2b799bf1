"""Blocks of GGUF, held against the quantiser and the reader of the package gguf."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize

from nachim.app.export import export
from nachim.model.hf.gguf_blocks import blocks, kind_of, low_of
from nachim.model.quantized.grid import Coded, nearest
from nachim.model.quantized.spread import spread
from nachim.spec import NF4, CompleteP, Int4, Int8, UserError
from tests.model.quantized.low import LLAMA, written

GENERATOR = torch.Generator().manual_seed(3)
WEIGHT = 0.05 * torch.randn(16, 128, generator=GENERATOR)


def made(coded: Coded) -> tuple[GGMLQuantizationType, np.ndarray]:
    model = spread(coded.grid.scheme, {"one": [coded]}, {}, "GGUF")
    low = low_of(model)
    return low.kind, blocks("one", low.kind, model.values["one"], low.scales["one"], low.lows["one"])


@pytest.mark.parametrize("scheme", [Int8(), Int4(group=32, symmetric=True), Int4(group=128, symmetric=True)], ids=str)
def test_blocks_read_back_as_the_values_that_our_codes_stand_for(scheme):
    coded = nearest(WEIGHT, scheme)
    kind, found = made(coded)
    assert np.array_equal(dequantize(found, kind), coded.decode().numpy())


def test_zeros_of_asymmetric_groups_are_kept_to_fp16():
    coded = nearest(WEIGHT, Int4(group=64))
    kind, found = made(coded)
    assert kind is GGMLQuantizationType.Q4_1
    error = np.abs(dequantize(found, kind) - coded.decode().numpy())
    assert error.max() <= 2**-11 * 15 * coded.grid.scale_OG.max().item()
    step = coded.grid.scale_OG.repeat_interleave(64, 1).numpy()
    assert np.array_equal(np.rint(dequantize(found, kind) / step), np.rint(coded.decode().numpy() / step))


def test_the_bytes_are_those_of_the_packages_own_quantiser():
    """It finds the scale anew from the extreme weight of a block, which symmetric groups of 32 are coded by."""
    coded = nearest(WEIGHT, Int4(group=32, symmetric=True))
    kind, found = made(coded)
    assert np.array_equal(found, quantize(coded.decode().numpy(), kind))
    rows = WEIGHT[:, :32]  # one block a row, as int8 has one scale a row
    kind, found = made(nearest(rows, Int8()))
    assert np.array_equal(found, quantize(nearest(rows, Int8()).decode().numpy(), kind))


@pytest.mark.parametrize(
    "scheme", [Int8(), Int4(group=32, symmetric=True), Int4(group=64)], ids=["q8_0", "q4_0", "q4_1"]
)
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "factors"])
def test_a_file_holds_the_tensors_of_the_decoded_model(tmp_path, scheme, scaled):
    factors = CompleteP(base_width=32, base_head=16, base_depth=1)
    spec = replace(LLAMA, parametrisation=factors) if scaled else LLAMA
    (tmp_path / "low").mkdir()
    dense = written(tmp_path / "low", spec, scheme)
    export(tmp_path / "low", tmp_path / "out", to="gguf")
    reader = GGUFReader(tmp_path / "out" / "model.gguf")
    held = {tensor.name: tensor for tensor in reader.tensors}
    values = {name: dequantize(tensor.data, tensor.tensor_type) for name, tensor in held.items()}
    assert {held[f"blk.1.{name}.weight"].tensor_type for name in ("attn_q", "attn_output", "ffn_up", "ffn_down")} == {
        kind_of(scheme)
    }
    assert held["token_embd.weight"].tensor_type is GGMLQuantizationType.F32
    factor = spec.parametrisation.residual(2)
    up = dense.blocks[1].ffn.gate_up.weight.detach()[128:].numpy()
    down = dense.blocks[1].ffn.down.weight.detach().numpy() * factor
    tolerance = 0 if kind_of(scheme) is not GGMLQuantizationType.Q4_1 and not scaled else 2e-4
    np.testing.assert_allclose(values["blk.1.ffn_up.weight"], up, rtol=0, atol=tolerance)
    np.testing.assert_allclose(values["blk.1.ffn_down.weight"], down, rtol=0, atol=tolerance)


def test_what_gguf_cannot_say_is_refused(tmp_path):
    with pytest.raises(UserError, match="GGUF has no place for NF4: quantise to int8 or int4"):
        made(nearest(WEIGHT, NF4()))
    with pytest.raises(UserError, match=r"weights in groups of 16 do not fit GGUF, whose blocks of 32 share a scale"):
        kind_of(Int4(group=16))
    plain = nearest(WEIGHT, Int8())
    with pytest.raises(UserError, match="what one reads is divided first, which GGUF cannot say"):
        made(Coded(plain.grid, plain.codes_OI, torch.ones(128)))
    with pytest.raises(UserError, match=r"one has 40 inputs, which GGUF's blocks of 32 do not divide"):
        made(nearest(WEIGHT[:, :40], Int8()))
