"""Llama 1, 2 and 3 against transformers."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from tests.model.hf.parity import hold

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "plain": LlamaConfig(**SMALL),
    "grouped, tied, wide heads": LlamaConfig(
        **SMALL, num_key_value_heads=2, head_dim=12, tie_word_embeddings=True, rms_norm_eps=1e-5
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)
