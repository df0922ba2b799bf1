"""Mixtral, Qwen2-MoE and Qwen3-MoE against transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig

from nachim.model.hf import config_for, read_config
from nachim.spec import UserError
from nachim.spec.known import known
from tests.model.hf.parity import SMALL, hold

GROUPED = {**SMALL, "num_key_value_heads": 2, "pad_token_id": None}
MIXTRAL = {**GROUPED, "num_local_experts": 6, "num_experts_per_tok": 2}
QWEN = {**GROUPED, "moe_intermediate_size": 12, "num_experts": 6, "num_experts_per_tok": 3, "head_dim": 8}
CONFIGS = {
    "mixtral": MixtralConfig(**MIXTRAL, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "mixtral, window, tied": MixtralConfig(
        **{**MIXTRAL, "num_experts_per_tok": 1}, sliding_window=4, tie_word_embeddings=True, head_dim=12
    ),
    "qwen3": Qwen3MoeConfig(**QWEN, norm_topk_prob=True, attention_bias=True),
    "qwen3, dense layers, window, scores as they are": Qwen3MoeConfig(
        **{**QWEN, "num_hidden_layers": 4},
        decoder_sparse_step=2,
        mlp_only_layers=[3],
        use_sliding_window=True,
        sliding_window=3,
        rms_norm_eps=1e-2,
    ),
    "qwen2": Qwen2MoeConfig(**QWEN, shared_expert_intermediate_size=24, norm_topk_prob=True),
    "qwen2, dense layers, windows, no biases": Qwen2MoeConfig(
        **{**QWEN, "num_hidden_layers": 4},
        shared_expert_intermediate_size=12,
        mlp_only_layers=[0],
        use_sliding_window=True,
        sliding_window=3,
        max_window_layers=3,
        qkv_bias=False,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


COMMON = {"attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "bfloat16"}
COMMON |= {"output_router_logits": False, "tie_word_embeddings": False, "use_cache": True, "rope_theta": 1e6}
PUBLISHED = {
    "Mixtral-8x7B-v0.1": COMMON
    | {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2}
    | {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "router_aux_loss_coef": 0.02, "sliding_window": None}
    | {"vocab_size": 32_000},
    "Qwen1.5-MoE-A2.7B": COMMON
    | {"model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24}
    | {"num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4}
    | {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "norm_topk_prob": False}
    | {"decoder_sparse_step": 1, "max_position_embeddings": 8192, "max_window_layers": 21, "rms_norm_eps": 1e-6}
    | {"router_aux_loss_coef": 0.001, "sliding_window": 32_768, "use_sliding_window": False, "vocab_size": 151_936},
    "Qwen3-30B-A3B": COMMON
    | {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48}
    | {"num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8}
    | {"moe_intermediate_size": 768, "norm_topk_prob": True, "head_dim": 128, "attention_bias": False}
    | {"decoder_sparse_step": 1, "max_position_embeddings": 40_960, "max_window_layers": 48, "rms_norm_eps": 1e-6}
    | {"mlp_only_layers": [], "router_aux_loss_coef": 0.001, "sliding_window": None, "use_sliding_window": False}
    | {"rope_scaling": None, "vocab_size": 151_936},
}
SIZES = {"Mixtral-8x7B-v0.1": (46.7e9, 12.9e9), "Qwen1.5-MoE-A2.7B": (14.3e9, 2.7e9), "Qwen3-30B-A3B": (30.5e9, 3.3e9)}
"""Parameters, all and active, on the model cards."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_of_the_hub_are_the_published_models(name):
    _, config, decoder = read_config(PUBLISHED[name])
    assert not config.unknown
    total, active = SIZES[name]
    assert decoder.params_total == pytest.approx(total, rel=0.005)
    assert decoder.params_active == pytest.approx(active, rel=0.02)
    kinds = {"mixtral": MixtralConfig, "qwen2_moe": Qwen2MoeConfig, "qwen3_moe": Qwen3MoeConfig}
    assert read_config(kinds[PUBLISHED[name]["model_type"]](**PUBLISHED[name]).to_dict())[2] == decoder
    family, values = config_for(decoder, 4096)
    assert family.model_type == PUBLISHED[name]["model_type"]
    assert read_config(values)[2] == decoder


def test_mixtral_is_the_known_one():
    decoder, other = read_config(PUBLISHED["Mixtral-8x7B-v0.1"])[2], known("mixtral-8x7b").decoder
    assert replace(decoder, ffn=replace(decoder.ffn, renormalise=None)) == other


@pytest.mark.parametrize("kind", [MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig])
def test_absent_keys_have_the_defaults_of_the_config_class(kind):
    written = kind().to_dict()
    keys = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    assert read_config({key: written[key] for key in keys})[2] == read_config(written)[2]


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("Mixtral-8x7B-v0.1", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("Qwen3-30B-A3B", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("Qwen1.5-MoE-A2.7B", {"shared_expert_intermediate_size": 5000}, "it is no multiple of moe_intermediate_size"),
        ("Qwen1.5-MoE-A2.7B", {"layer_types": ["full_attention"]}, "for each of 24 layers"),
        ("Qwen1.5-MoE-A2.7B", {"layer_types": ["sliding_attention"] * 24}, "'sliding_attention' and a window"),
        ("Mixtral-8x7B-v0.1", {"num_experts_per_tok": 9}, "MoE.active is 9; there are only experts=8"),
    ],
)
def test_what_is_not_computed_exactly_is_refused(name, changes, said):
    with pytest.raises(UserError, match=said):
        read_config({**PUBLISHED[name], **changes})
