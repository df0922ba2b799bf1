"""gpt-oss against transformers."""

from __future__ import annotations

import pytest
from transformers import GptOssConfig

from nachim.model.hf import read_config
from nachim.spec import UserError
from tests.model.hf.parity import SMALL, hold, hold_published

YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
SHAPE = {**SMALL, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0}
CONFIGS = {
    "plain": GptOssConfig(
        **SHAPE,
        num_key_value_heads=2,
        sliding_window=4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    ),
    "full first, no biases, clipped": GptOssConfig(
        **{**SHAPE, "num_hidden_layers": 3},
        num_key_value_heads=4,
        sliding_window=3,
        attention_bias=False,
        tie_word_embeddings=True,
        swiglu_limit=0.7,
        rms_norm_eps=1e-2,
        layer_types=["full_attention", "full_attention", "sliding_attention"],
        rope_parameters={**YARN, "rope_theta": 1e3, "original_max_position_embeddings": 16},
    ),
}
PUBLISHED = {
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {**YARN, "factor": 32.0, "original_max_position_embeddings": 4096},
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 201088,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


def test_as_published():
    decoder = hold_published(PUBLISHED)
    assert [block.mixer.window for block in decoder.blocks] == [128, None]
    untold = {key: value for key, value in PUBLISHED.items() if key not in ("rope_scaling", "layer_types")}
    assert read_config(untold)[2] == decoder


@pytest.mark.parametrize(
    "changes",
    [{"quantization_config": {"quant_method": "mxfp4"}}, {"swiglu_alpha": 1.0}, {"layer_types": ["full_attention"]}],
    ids=lambda it: next(iter(it)),
)
def test_what_is_not_exact_is_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        read_config({**PUBLISHED, **changes})
