"""OLMo 2 against transformers."""

from __future__ import annotations

import pytest
from transformers import Olmo2Config

from tests.model.hf.parity import SMALL, hold, hold_published

CONFIGS = {
    "plain": Olmo2Config(**SMALL, rms_norm_eps=1e-2),
    "grouped, biases, tied": Olmo2Config(
        **SMALL,
        num_key_value_heads=2,
        head_dim=12,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    ),
}
PUBLISHED = {
    "model_type": "olmo2",
    "architectures": ["Olmo2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "num_key_value_heads": 32,
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": False,
    "vocab_size": 100352,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


def test_as_published():
    decoder = hold_published(PUBLISHED)
    assert (decoder.position.theta, decoder.norm.eps, decoder.attention.qk_norm_eps) == (5e5, 1e-6, 1e-6)
