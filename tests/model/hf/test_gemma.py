"""Gemma 2 and the text model of Gemma 3 against transformers."""

from __future__ import annotations

import pytest
from transformers import Gemma2Config, Gemma3TextConfig

from tests.model.hf.parity import SMALL, hold

HEADS = {"num_key_value_heads": 2, "head_dim": 12, "query_pre_attn_scalar": 10}
ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
CONFIGS = {
    "gemma 2": Gemma2Config(
        **SMALL, **HEADS, sliding_window=4, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gemma 2, no caps": Gemma2Config(
        **SMALL,
        **HEADS,
        sliding_window=4,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        attention_bias=True,
        tie_word_embeddings=False,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "gemma 3": Gemma3TextConfig(**{**SMALL, "num_hidden_layers": 6}, **HEADS, sliding_window=4),
    "gemma 3, scaled": Gemma3TextConfig(
        **SMALL,
        **HEADS,
        sliding_window=4,
        rms_norm_eps=1e-4,
        final_logit_softcapping=3.0,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=ROPE,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)
