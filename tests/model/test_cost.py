"""What a spec declares is what the module counts, and what the literature says."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nachim.model import attention, build
from nachim.model.attend import plain_attention
from nachim.model.frame import Frame
from nachim.spec import Attention, Decoder, SwiGLU, plain
from tests.spec.examples import decoder

SHAPES = {
    "multi-head": {},
    "grouped": {"n_kv_heads": 2},
    "multi-query": {"n_kv_heads": 1},
    "qk_norm": {"qk_norm": True},
    "previous_key": {"previous_key": True},
    "grouped previous_key qk_norm": {"n_kv_heads": 2, "previous_key": True, "qk_norm": True},
    "multi-query previous_key": {"n_kv_heads": 1, "previous_key": True},
    "norm over all heads": {"n_kv_heads": 2, "qk_norm": True, "qk_norm_over": "all"},
    "biases on queries, keys and values": {"n_kv_heads": 2, "previous_key": True, "bias": "qkv"},
    "biases everywhere": {"n_kv_heads": 2, "bias": "all"},
    "window that admits all": {"window": 24},
    "heads wider than the model": {"n_heads": 6, "n_kv_heads": 3, "d_head": 10},
    "tied": {"tied": True},
    "deep": {"n_layers": 5, "d_model": 16, "d_head": 4},
}
DEFINED = {
    "cap": {"softcap": 3.0},
    "sinks": {"sinks": True, "n_kv_heads": 2},
    "cap, sinks, scale": {"softcap": 3.0, "sinks": True, "scale": 0.2},
}
"""Kernels work more than these ask: scores made again, a token more for the sink. Their plain form is counted."""
LLAMA_3_8B = Decoder(
    vocab_size=128_256,
    d_model=4096,
    n_layers=32,
    attention=Attention(n_heads=32, n_kv_heads=8, d_head=128),
    ffn=SwiGLU(d_ff=14_336),
)
GPT_3 = Decoder(
    vocab_size=50_257,
    d_model=12_288,
    n_layers=96,
    attention=Attention(n_heads=96, n_kv_heads=96, d_head=128),
    ffn=SwiGLU(d_ff=32_768),
)


@pytest.mark.parametrize("seq_len", [1, 8, 24])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_declared_flops_are_the_counted_ones(shape, seq_len):
    spec = decoder(**shape)
    model = build(spec, spec.d_model)
    ids_BT = torch.zeros(2, seq_len, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(ids_BT, ids_BT).backward()
    declared = spec.flops_per_token(seq_len) + spec.head_flops_per_token
    assert counter.get_total_flops() == declared * ids_BT.numel()


@pytest.mark.parametrize("shape", DEFINED.values(), ids=DEFINED)
def test_declared_flops_are_those_of_the_plain_form(shape, monkeypatch):
    def plain(q, k, v, frame, position, rule, sinks):
        return plain_attention(q, k, v, None, None, rule, sinks)

    monkeypatch.setattr(attention, "attend", plain)
    test_declared_flops_are_the_counted_ones(shape, 24)


@pytest.mark.parametrize(("window", "seq_len"), [(1, 9), (5, 24), (24, 24), (30, 24), (None, 24)])
def test_a_window_is_charged_for_the_tokens_it_admits(window, seq_len):
    part = Attention(n_heads=4, n_kv_heads=2, d_head=8, window=window)
    allowed = Frame((1, seq_len), torch.device("cpu")).allowed(window)
    assert part.mixing_flops(seq_len, causal=True) * seq_len == pytest.approx(4 * 4 * 8 * allowed.sum().item())
    assert part.mixing_flops(seq_len) == 4 * 4 * 8 * allowed.sum(-1).max()


@pytest.mark.parametrize("shape", (SHAPES | DEFINED).values(), ids=SHAPES | DEFINED)
def test_declared_parameters_are_the_counted_ones(shape):
    spec = decoder(**shape)
    counts = {name: weight.numel() for name, weight in build(spec, spec.d_model).named_parameters()}
    tables = {"embedding.weight", "head.weight"}
    assert spec.params_total == spec.params_active == sum(counts.values())
    assert spec.params_non_embedding == sum(count for name, count in counts.items() if name not in tables)


@pytest.mark.parametrize(("d_model", "n_layers", "seq_len"), [(24, 2, 16), (96, 6, 128), (3072, 30, 4096)])
def test_the_plain_block_costs_what_the_scaling_literature_says(d_model, n_layers, seq_len):
    spec = plain(d_model=d_model, n_layers=n_layers, d_head=d_model // 3, vocab_size=300)
    assert spec.flops_per_token(seq_len) == 72 * n_layers * d_model**2 + 12 * n_layers * d_model * seq_len
    assert spec.head_flops_per_token == 6 * 300 * d_model


def test_published_shapes_that_the_design_corrects():
    small = plain(d_model=96, n_layers=6, d_head=16, vocab_size=300).flops_per_token(128)
    assert small == pytest.approx(4.87e6, rel=1e-3)
    wide = Decoder(
        vocab_size=300,
        d_model=128,
        n_layers=4,
        attention=Attention(n_heads=8, n_kv_heads=8, d_head=16),
        ffn=SwiGLU(d_ff=341),
    )
    assert wide.flops_per_token(128) == pytest.approx(5.51e6, rel=2e-3)


def test_published_models_have_their_published_size():
    assert LLAMA_3_8B.params_total == 8_030_261_248
    assert LLAMA_3_8B.params_total - LLAMA_3_8B.params_non_embedding == 2 * 128_256 * 4096


@pytest.mark.parametrize(
    ("model", "seq_len", "gigabytes"), [(LLAMA_3_8B, 8192, 1.07), (LLAMA_3_8B, 131_072, 17.2), (GPT_3, 2048, 9.66)]
)
def test_the_cache_has_the_size_arithmetic_gives(model, seq_len, gigabytes):
    assert model.cache_bytes(seq_len) == pytest.approx(gigabytes * 1e9, rel=5e-3)
    assert model.cache_bytes(seq_len, value_bytes=1) * 2 == model.cache_bytes(seq_len)


def test_the_cache_holds_one_key_and_one_value_a_head_a_token_a_layer():
    spec = decoder(n_kv_heads=2, n_layers=3)
    assert spec.cache_bytes(5, 4) == 3 * 5 * 2 * (2 * 8) * 4


def test_the_cache_holds_what_a_window_admits_and_the_last_projection_of_a_previous_key():
    spec = decoder(n_kv_heads=2, n_layers=3, window=4, previous_key=True)
    assert spec.cache_bytes(3, 4) == 3 * (3 * 2 + 1) * (2 * 8) * 4
    assert spec.cache_bytes(5, 4) == spec.cache_bytes(500, 4) == 3 * (4 * 2 + 1) * (2 * 8) * 4
