"""Llama 1, 2 and 3 and their near relatives against transformers."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config

from tests.model.hf.parity import SMALL, hold

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 4.0}
LOCAL = {"use_sliding_window": True, "sliding_window": 4}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama 3.2": LlamaConfig(
        **SMALL, num_key_value_heads=2, head_dim=12, tie_word_embeddings=True, rms_norm_eps=1e-5, rope_parameters=LLAMA3
    ),
    "llama, biases": LlamaConfig(
        **SMALL, attention_bias=True, mlp_bias=True, rope_parameters={"rope_type": "linear", "factor": 2.0}
    ),
    "mistral": MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4),
    "mistral, no window": MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None, head_dim=16),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2, rope_parameters=YARN),
    "qwen2, window": Qwen2Config(
        **SMALL, num_key_value_heads=4, tie_word_embeddings=True, max_window_layers=1, **LOCAL
    ),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=12, rms_norm_eps=1e-3, tie_word_embeddings=True),
    "qwen3, biases": Qwen3Config(
        **SMALL,
        num_key_value_heads=4,
        head_dim=8,
        attention_bias=True,
        layer_types=["sliding_attention", "full_attention"],
        **LOCAL,
    ),
    "smollm3": SmolLM3Config(**SMALL, num_key_value_heads=2, pad_token_id=0, no_rope_layers=[1, 0]),
    "smollm3, window": SmolLM3Config(
        **{**SMALL, "num_hidden_layers": 4}, num_key_value_heads=4, pad_token_id=0, tie_word_embeddings=False, **LOCAL
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)
