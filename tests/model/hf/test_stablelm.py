"""StableLM, StarCoder2 and Command R against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import CohereConfig, StableLmConfig, Starcoder2Config

from nachim.model import build
from nachim.model.decoder import initialise
from nachim.model.hf import read_config
from nachim.spec import Parallel, UserError
from tests.model.hf.parity import SMALL, hold, hold_published
from tests.spec.examples import decoder

CONFIGS = {
    "stablelm": StableLmConfig(**SMALL, num_key_value_heads=4),
    "stablelm, side by side": StableLmConfig(
        **SMALL,
        num_key_value_heads=2,
        use_parallel_residual=True,
        use_qkv_bias=True,
        layer_norm_eps=1e-2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
    ),
    "starcoder2": Starcoder2Config(**SMALL, sliding_window=4, norm_epsilon=1e-2),
    "starcoder2, no biases": Starcoder2Config(
        **SMALL, num_key_value_heads=1, use_bias=False, tie_word_embeddings=False, hidden_act="gelu"
    ),
    "cohere": CohereConfig(**SMALL),
    "cohere, grouped, biases": CohereConfig(
        **SMALL,
        num_key_value_heads=2,
        head_dim=12,
        attention_bias=True,
        tie_word_embeddings=False,
        logit_scale=0.3,
        layer_norm_eps=1e-2,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    ),
}
STABLELM = {
    "model_type": "stablelm",
    "architectures": ["StableLmForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 2,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qkv_bias": False,
    "vocab_size": 50304,
}
STARCODER2 = {
    "model_type": "starcoder2",
    "architectures": ["Starcoder2ForCausalLM"],
    "attention_dropout": 0.1,
    "bos_token_id": 0,
    "embedding_dropout": 0.1,
    "eos_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 3072,
    "initializer_range": 0.018042,
    "intermediate_size": 12288,
    "max_position_embeddings": 16384,
    "mlp_type": "default",
    "norm_epsilon": 1e-05,
    "norm_type": "layer_norm",
    "num_attention_heads": 24,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "residual_dropout": 0.1,
    "rope_theta": 999999.4420358813,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "use_bias": True,
    "use_cache": True,
    "vocab_size": 49152,
}
COHERE = {
    "model_type": "cohere",
    "architectures": ["CohereForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 5,
    "eos_token_id": 255001,
    "hidden_act": "silu",
    "hidden_size": 8192,
    "initializer_range": 0.02,
    "intermediate_size": 22528,
    "layer_norm_eps": 1e-05,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "model_max_length": 131072,
    "num_attention_heads": 64,
    "num_hidden_layers": 2,
    "num_key_value_heads": 64,
    "pad_token_id": 0,
    "rope_theta": 8000000.0,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_qk_norm": False,
    "vocab_size": 256000,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


def test_as_published():
    stable, coder, command = (hold_published(values) for values in (STABLELM, STARCODER2, COHERE))
    assert stable.position.dim == 20
    assert (coder.attention.window, coder.tied) == (4096, True)
    assert (command.logit_scale, command.residual, command.tied) == (0.0625, Parallel(shared=True), True)


@pytest.mark.parametrize(
    ("values", "changes"),
    [(STABLELM, {"qk_layernorm": True}), (COHERE, {"use_qk_norm": True}), (STARCODER2, {"norm_type": "rms_norm"})],
    ids=["stablelm", "cohere", "starcoder2"],
)
def test_what_is_not_exact_is_refused(values, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        read_config({**values, **changes})


def test_logits_are_scaled_before_they_are_capped():
    ids_BT = torch.arange(12).view(2, 6)
    plain, scaled, capped = (
        build(decoder(tied=True, **fields), 0)
        for fields in ({}, {"logit_scale": 0.25}, {"logit_scale": 0.25, "logit_cap": 0.5})
    )
    for model in (plain, scaled, capped):
        initialise(model, 0)
    expected = plain(ids_BT) / 4
    torch.testing.assert_close(scaled(ids_BT), expected)
    torch.testing.assert_close(capped(ids_BT), 0.5 * torch.tanh(expected / 0.5))
