"""Falcon against transformers, whose eager attention adds ALiBi twice: there the fused one is the reference."""

from __future__ import annotations

import pytest
import torch
from transformers import FalconConfig
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

from nachim.model import build
from nachim.model.frame import Frame
from nachim.model.hf import read_config
from nachim.spec import ALiBi, Parallel, PreNorm, UserError
from tests.model.hf.parity import SMALL, hold, hold_published

SHAPE = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
NEW = {"new_decoder_architecture": True}
CONFIGS = {
    "7B": FalconConfig(**SHAPE),
    "40B": FalconConfig(**SHAPE, **NEW, num_kv_heads=2, ffn_hidden_size=48),
    "11B": FalconConfig(
        **SHAPE,
        **NEW,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
        activation="gelu_new",
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-2,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    ),
    "RW": FalconConfig(**SHAPE, alibi=True, bias=True, multi_query=False, parallel_attn=False),
    "ALiBi, six heads": FalconConfig(
        **{**SHAPE, "hidden_size": 36, "num_attention_heads": 6}, **NEW, num_kv_heads=2, alibi=True
    ),
}
PUBLISHED = {
    "model_type": "falcon",
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["FalconForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"},
    "bias": False,
    "bos_token_id": 11,
    "eos_token_id": 11,
    "hidden_dropout": 0.0,
    "hidden_size": 4544,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 2,
    "parallel_attn": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 65024,
}
LARGE = {**PUBLISHED, **NEW, "hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8}
RW = {
    **PUBLISHED,
    "alibi": True,
    "bias": True,
    "hidden_size": 2048,
    "multi_query": False,
    "num_attention_heads": 32,
    "parallel_attn": False,
    "vocab_size": 50304,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    config = CONFIGS[name]
    hold(config, tmp_path, attention="sdpa" if config.alibi else "eager")


def test_as_published():
    small, large, rw = (hold_published(values) for values in (PUBLISHED, LARGE, RW))
    assert (small.attention.n_kv_heads, small.residual) == (1, Parallel(shared=True))
    assert (large.attention.n_kv_heads, large.residual) == (8, Parallel())
    assert (rw.attention.n_kv_heads, rw.residual, rw.attention.bias) == (32, PreNorm(), "all")


def test_alibi_is_rounded_as_theirs_in_long_documents():
    length, heads, factor = 700, 6, 0.25
    module = build(ALiBi(factor=factor, rounded=True), 0)
    documents_BS = torch.tensor([[0] * 300 + [1] * 400])
    expected = torch.cat(
        [build_alibi_tensor(torch.ones(1, size, dtype=torch.int64), heads, torch.float32) for size in (300, 400)], -1
    ).reshape(1, heads, 1, length)
    frame = Frame((1, length), torch.device("cpu"), 0, documents_BS)
    assert torch.equal(module.bias(frame, length, heads), expected * factor)
    last = Frame((1, 1), torch.device("cpu"), length - 1, documents_BS)
    assert torch.equal(module.bias(last, 500, heads), expected[..., -500:] * factor)


@pytest.mark.parametrize(
    "changes",
    [
        {"apply_residual_connection_post_layernorm": True},
        {"parallel_attn": False, **NEW},
        {"num_ln_in_parallel_attn": 2},
        {"activation": "mish"},
    ],
    ids=lambda it: next(iter(it)),
)
def test_what_is_not_exact_is_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        read_config({**PUBLISHED, **changes})
