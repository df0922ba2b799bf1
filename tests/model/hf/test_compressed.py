"""The layout of compressed-tensors, read back by its published formula bit by bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from nachim.app.export import export
from nachim.model.hf.compressed import coded, packed
from nachim.model.quantized.grid import nearest
from nachim.model.quantized.spread import spread
from nachim.spec import NF4, Int4, Int8, UserError
from nachim.spec.quantize import Scheme
from tests.model.quantized.low import LLAMA, written


def unpacked(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Signed codes: those of each word from its lowest bits up, less half of their range."""
    rows = [
        [word >> bits * place & (1 << bits) - 1 for word in row for place in range(32 // bits)]
        for row in words.tolist()
    ]
    return torch.tensor(rows)[:, :count] - (1 << bits - 1)


def read(tensors: dict[str, torch.Tensor], base: str, bits: int) -> torch.Tensor:
    """(code - zero) times scale, as the format says."""
    shape, scale_OG = tensors[f"{base}weight_shape"].tolist(), tensors[f"{base}weight_scale"].float()
    codes_OGW = unpacked(tensors[f"{base}weight_packed"], bits, shape[1]).unflatten(1, (scale_OG.shape[1], -1))
    zero_OG = torch.zeros_like(scale_OG)
    if f"{base}weight_zero_point" in tensors:
        zero_OG = unpacked(tensors[f"{base}weight_zero_point"].mT, bits, shape[0]).mT
    return ((codes_OGW - zero_OG[..., None]) * scale_OG[..., None]).flatten(1)


@pytest.mark.parametrize("scheme", [Int8(), Int4(group=32), Int4(group=64, symmetric=True)], ids=str)
def test_a_matrix_reads_back_as_the_values_that_our_codes_stand_for(scheme: Scheme):
    weight_OI = 0.05 * torch.randn(24, 128, generator=torch.Generator().manual_seed(5))
    one = nearest(weight_OI, scheme)
    model = spread(scheme, {"weight": [one]}, {}, "the format")
    found = dict(coded("weight", scheme, model.values["weight"], model.scales["weight"], model.lows["weight"]))
    assert torch.equal(read(found, "", scheme.bits), one.decode())


def test_codes_fill_words_from_their_lowest_bits():
    assert packed(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 15, 9]]), 4).tolist() == [[0xF7654321 - 2**32, 9]]
    assert packed(torch.tensor([[1, 2, 3, 255]]), 8).tolist() == [[0xFF030201 - 2**32]]


@pytest.mark.parametrize("scheme", [Int8(), Int4(group=32)], ids=str)
def test_a_checkpoint_holds_every_matrix_of_the_decoded_model(tmp_path, scheme):
    (tmp_path / "low").mkdir()
    dense = written(tmp_path / "low", LLAMA, scheme)
    export(tmp_path / "low", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    told = config["quantization_config"]
    assert told["format"] == "pack-quantized"
    assert told["ignore"] == ["lm_head", "model.embed_tokens"]
    assert told["config_groups"]["group_0"]["weights"]["num_bits"] == scheme.bits
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    down = read(tensors, "model.layers.1.mlp.down_proj.", scheme.bits)
    assert torch.equal(down, dense.blocks[1].ffn.down.weight)
    up = read(tensors, "model.layers.0.mlp.up_proj.", scheme.bits)
    assert torch.equal(up, dense.blocks[0].ffn.gate_up.weight[128:])
    assert torch.equal(tensors["model.embed_tokens.weight"], dense.embedding.weight)


def test_what_the_format_cannot_say_is_refused():
    weight_OI = torch.randn(32, 32)
    with pytest.raises(UserError, match="compressed-tensors has no place for NF4"):
        spread(NF4(group=32), {"one": [nearest(weight_OI, NF4(group=32))]}, {}, "compressed-tensors")
    model = spread(Int8(), {"one": [nearest(weight_OI, Int8())]}, {}, "compressed-tensors")
    with pytest.raises(UserError, match="one has its scales down its columns"):
        dict(coded("one", Int8(), model.values["one"].mT, model.scales["one"].mT, model.lows["one"]))
