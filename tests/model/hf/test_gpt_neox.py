"""GPT-NeoX and Pythia against transformers."""

from __future__ import annotations

import pytest
from transformers import GPTNeoXConfig

from nachim.spec import Parallel
from tests.model.hf.parity import SMALL, hold, hold_published

CONFIGS = {
    "parallel": GPTNeoXConfig(**SMALL),
    "one after the other, no biases, tied": GPTNeoXConfig(
        **SMALL,
        use_parallel_residual=False,
        attention_bias=False,
        tie_word_embeddings=True,
        hidden_act="gelu_new",
        layer_norm_eps=1e-2,
        rotary_pct=0.5,
        rotary_emb_base=500,
    ),
    "all rotary, stretched": GPTNeoXConfig(
        **SMALL,
        hidden_act="relu",
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e3, "partial_rotary_factor": 1.0},
    ),
}
PUBLISHED = {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "classifier_dropout": 0.1,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
PYTHIA_70M = 70_426_624
"""Parameters of Pythia 70M (arXiv 2304.01373, tab. 1, embedding and head included)."""


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


def test_as_published():
    decoder = hold_published(PUBLISHED, stored=("lm_head", "embed_out"))
    assert decoder.params_total == PYTHIA_70M
    assert (decoder.position.dim, decoder.residual) == (16, Parallel())
