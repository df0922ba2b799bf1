"""BLOOM against transformers."""

from __future__ import annotations

import pytest
from transformers import BloomConfig

from nachim.model.hf import read_config
from nachim.spec import UserError
from tests.model.hf.parity import hold, hold_published

CONFIGS = {
    "plain": BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4),
    "six heads, untied": BloomConfig(
        vocab_size=40, hidden_size=36, n_layer=3, n_head=6, layer_norm_epsilon=1e-2, tie_word_embeddings=False
    ),
}
PUBLISHED = {
    "model_type": "bloom",
    "architectures": ["BloomForCausalLM"],
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "unk_token_id": 0,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "n_embed": 1024,
    "n_inner": None,
    "n_layer": 2,
    "num_attention_heads": 16,
    "offset_alibi": 100,
    "pretraining_tp": 1,
    "seq_length": 2048,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "use_cache": True,
    "vocab_size": 250880,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


def test_as_published():
    hold_published(PUBLISHED)


@pytest.mark.parametrize(
    "changes", [{"apply_residual_connection_post_layernorm": True}, {"n_inner": 1000}], ids=lambda it: next(iter(it))
)
def test_what_is_not_exact_is_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        read_config({**PUBLISHED, **changes})
