"""Residual schemes, norms and what stands around the blocks: each is its formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nachim.model import build
from nachim.model.frame import Frame
from nachim.spec import LayerNorm, OutputNorm, Parallel, PostNorm, PreNorm, RMSNorm, SandwichNorm
from tests.model.contract import drawn, hold
from tests.spec.examples import decoder

SCHEMES = {
    "pre": PreNorm(),
    "post": PostNorm(),
    "sandwich": SandwichNorm(),
    "output": OutputNorm(),
    "parallel": Parallel(),
    "parallel, one norm": Parallel(shared=True),
}


def by_formula(name: str, block: torch.nn.Module, x: Tensor, frame: Frame) -> Tensor:
    """One block, written out."""

    def attention(y: Tensor) -> Tensor:
        return block.attention(y, frame, block.position, None)

    n = {key: module for key, module in block.named_children() if key.endswith("norm")}
    match name:
        case "pre":
            x = x + attention(n["attention_norm"](x))
            return x + block.ffn(n["ffn_norm"](x))
        case "post":
            x = n["attention_norm"](x + attention(x))
            return n["ffn_norm"](x + block.ffn(x))
        case "sandwich":
            x = x + n["attention_output_norm"](attention(n["attention_norm"](x)))
            return x + n["ffn_output_norm"](block.ffn(n["ffn_norm"](x)))
        case "output":
            x = x + n["attention_output_norm"](attention(x))
            return x + n["ffn_output_norm"](block.ffn(x))
        case "parallel":
            return x + attention(n["attention_norm"](x)) + block.ffn(n["ffn_norm"](x))
        case _:
            y = n["attention_norm"](x)
            return x + attention(y) + block.ffn(y)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_block_is_its_formula(name):
    spec = replace(decoder(norm=LayerNorm()), residual=SCHEMES[name])
    model, x_BTD = drawn(spec), torch.randn(2, 9, spec.d_model)
    frame = Frame((2, 9), x_BTD.device)
    expected_BTD = by_formula(name, model.blocks[0], x_BTD, frame)
    torch.testing.assert_close(model.blocks[0](x_BTD, frame), expected_BTD)
    norms = sum(key.endswith("norm") for key, _ in model.blocks[0].named_children())
    assert norms == SCHEMES[name].norms(2)
    assert hasattr(model, "norm") == (name != "post")


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_keeps_the_contract(name):
    hold(replace(decoder(norm=RMSNorm(offset=True)), residual=SCHEMES[name]))


def test_what_stands_around_the_blocks_keeps_the_contract():
    hold(replace(decoder(norm=LayerNorm(bias=False)), embedding_scale=32**0.5, embedding_norm=True, logit_cap=5.0))


def test_scale_norm_and_cap_are_where_they_belong():
    spec = replace(decoder(norm=LayerNorm()), embedding_scale=3.0, embedding_norm=True, logit_cap=0.5)
    model, ids_BT = drawn(spec), torch.arange(12)[None]
    x_BTD = model.embedding_norm(3.0 * model.embedding.weight[ids_BT])
    frame = Frame((1, 12), ids_BT.device)
    for block in model.blocks:
        x_BTD = block(x_BTD, frame)
    expected_BTV = 0.5 * torch.tanh(model.norm(x_BTD) @ model.head.weight.T / 0.5)
    torch.testing.assert_close(model(ids_BT), expected_BTV)
    assert model(ids_BT).abs().max() < 0.5


def test_an_offset_gain_is_one_more():
    plain, offset = build(RMSNorm(), 16), build(RMSNorm(offset=True), 16)
    plain.weight.data = torch.randn(16)
    offset.weight.data = plain.weight.data - 1
    x = torch.randn(3, 16)
    torch.testing.assert_close(offset(x), plain(x))


@pytest.mark.parametrize("name", SCHEMES)
def test_norms_cost_no_flops_that_are_counted(name):
    spec = replace(decoder(), residual=SCHEMES[name])
    ids_BT = torch.zeros(1, 8, dtype=torch.int64)
    model = build(spec, spec.d_model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(ids_BT, ids_BT).backward()
    assert counter.get_total_flops() == 8 * (spec.flops_per_token(8) + spec.head_flops_per_token)
