"""MPT against transformers."""

from __future__ import annotations

import pytest
from transformers import MptConfig

from nachim.model.hf import read_config
from nachim.spec import UserError
from tests.model.hf.parity import hold, hold_published

CONFIGS = {
    "plain": MptConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "six heads, scaled, untied": MptConfig(
        vocab_size=40,
        d_model=36,
        n_layers=3,
        n_heads=6,
        max_seq_len=64,
        layer_norm_epsilon=1e-2,
        tie_word_embeddings=False,
        attn_config={"softmax_scale": 0.3},
    ),
}
INNER = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_impl": "torch",
    "attn_pdrop": 0,
    "attn_type": "multihead_attention",
    "attn_uses_sequence_id": False,
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
    "softmax_scale": None,
}
PUBLISHED = {
    "model_type": "mpt",
    "architectures": ["MPTForCausalLM"],
    "attn_config": INNER,
    "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig"},
    "d_model": 4096,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_config": {"name": "kaiming_normal_"},
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 2048,
    "n_heads": 32,
    "n_layers": 2,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0,
    "torch_dtype": "bfloat16",
    "use_cache": False,
    "verbose": 0,
    "vocab_size": 50432,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


def test_as_published():
    hold_published(PUBLISHED)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attn_config": {**INNER, "clip_qkv": 6.0}}, "attn_config has clip_qkv=6.0"),
        ({"attn_config": {**INNER, "alibi": False}}, "alibi=False"),
        ({"attn_config": {**INNER, "alibi_bias_max": 4}}, "alibi_bias_max"),
        ({"attn_config": {**INNER, "attn_type": "multiquery_attention"}}, "attn_type"),
        ({"attn_config": {**INNER, "qk_ln": True}}, "qk_ln"),
        ({"attn_config": {**INNER, "prefix_lm": True}}, "prefix_lm"),
        ({"no_bias": False}, "no_bias"),
        ({"logit_scale": "inv_sqrt_d_model"}, "logit_scale"),
        ({"expansion_ratio": 2}, "expansion_ratio"),
        ({"norm_type": "rmsnorm"}, "norm_type"),
    ],
)
def test_what_is_not_exact_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        read_config({**PUBLISHED, **changes})
