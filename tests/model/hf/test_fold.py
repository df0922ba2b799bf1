"""A parametrisation folded into the weights: the same logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nachim.model import build
from nachim.model.hf.fold import folded
from nachim.model.hf.source import Source, save
from nachim.model.load import module_of
from nachim.spec import (
    CompleteP,
    Decoder,
    LayerNorm,
    OutputNorm,
    Parallel,
    PostNorm,
    RMSNorm,
    SandwichNorm,
    Standard,
    plain,
)
from tests.model.hf.parity import close

PLAIN = replace(
    plain(d_model=32, n_layers=3, d_head=8, vocab_size=40),
    parametrisation=CompleteP(base_width=12, base_head=2, base_depth=2),
)
ATTENTION = PLAIN.attention
DECODERS = {
    "pre": PLAIN,
    "tied, biases": replace(PLAIN, tied=True, norm=LayerNorm(), attention=replace(ATTENTION, bias="all")),
    "norms of heads": replace(PLAIN, attention=replace(ATTENTION, qk_norm=True)),
    "gains as distances": replace(
        PLAIN,
        norm=RMSNorm(offset=True),
        residual=SandwichNorm(),
        attention=replace(ATTENTION, qk_norm=True, qk_norm_offset=True, softcap=2.0),
    ),
    "output norms": replace(PLAIN, residual=OutputNorm()),
    "post, deeper": replace(
        PLAIN, residual=PostNorm(), parametrisation=CompleteP(base_width=32, base_head=8, base_depth=2)
    ),
    "parallel": replace(PLAIN, residual=Parallel(shared=True)),
}


def stored(decoder: Decoder, folder) -> Source:
    """Random tensors of a decoder, in a file."""
    model = build(decoder, decoder.d_model)
    drawn = {name: torch.randn_like(one) * max(one.shape[-1], 9) ** -0.5 for name, one in model.named_parameters()}
    save(drawn, folder / "weights.safetensors")
    return Source([folder / "weights.safetensors"])


@pytest.mark.parametrize("name", DECODERS)
def test_the_logits_stay(name, tmp_path):
    decoder = DECODERS[name]
    source = stored(decoder, tmp_path)
    standard, changed = folded(decoder, source)
    assert standard == replace(decoder, parametrisation=Standard())
    ids_BT = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        expected = module_of(decoder, dict(source))(ids_BT)
        close(name, module_of(standard, dict(changed))(ids_BT), expected)
        assert not torch.allclose(module_of(standard, dict(source))(ids_BT), expected, rtol=0.1)


def test_factors_of_one_change_nothing(tmp_path):
    source = stored(PLAIN, tmp_path)
    assert folded(replace(PLAIN, parametrisation=Standard()), source)[1] is source
    base = CompleteP(base_width=32, base_head=8, base_depth=3)
    standard, same = folded(replace(PLAIN, parametrisation=base), source)
    assert (standard.parametrisation, same) == (Standard(), source)


def test_logits_that_no_norm_stands_before_cannot_be_folded(tmp_path):
    decoder = replace(PLAIN, residual=PostNorm())
    source = stored(decoder, tmp_path)
    assert folded(decoder, source) == (decoder, source)
