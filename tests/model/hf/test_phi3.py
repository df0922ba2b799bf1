"""Phi-3 and Phi-4-mini against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import Phi3Config

import nachim
from nachim.model.hf import read_config
from nachim.spec import UserError
from tests.model.hf.parity import LENGTH, PACKED, SMALL, close, decoded, hold, hold_published, reference

BASE = {**SMALL, "pad_token_id": 0}
STRETCHED = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.0, 2.0, 5.0, 9.0]}
CONFIGS = {
    "plain": Phi3Config(**BASE),
    "window, grouped, wide heads": Phi3Config(
        **BASE, num_key_value_heads=2, head_dim=12, sliding_window=4, rms_norm_eps=1e-3
    ),
    "partly rotary, tied": Phi3Config(
        **BASE,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        partial_rotary_factor=0.5,
        rope_theta=500.0,
        sliding_window=4,
    ),
    "longrope": Phi3Config(
        **{**BASE, "max_position_embeddings": 256}, original_max_position_embeddings=64, rope_parameters=STRETCHED
    ),
}
PUBLISHED = {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0,
    "eos_token_id": 32000,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 24,
    "num_hidden_layers": 2,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0 + i for i in range(48)]},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 32064,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


def test_as_published():
    decoder = hold_published(PUBLISHED)
    assert decoder.position.dim == 96
    assert decoder.position.scaling.factor == 32
    assert decoder.attention.window == 262144


def test_a_context_beyond_the_original_turns_by_the_long_divisors(tmp_path):
    config = Phi3Config(**BASE, original_max_position_embeddings=8, rope_parameters=dict(STRETCHED))
    theirs = reference(config)
    theirs.save_pretrained(tmp_path)
    ours = nachim.load(tmp_path)
    ids_BT = torch.randint(0, 40, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for length in (8, 9, LENGTH):
            close(f"{length} tokens", ours(ids_BT[:, :length]), theirs(ids_BT[:, :length], use_cache=False).logits)
        expected = theirs(ids_BT, use_cache=False).logits
        close("decoding, all beyond", decoded(ours, ids_BT, first=9), expected)
        assert (expected[:, :8] - theirs(ids_BT[:, :8], use_cache=False).logits).abs().max() > 0.1
        short = [theirs(piece, use_cache=False).logits for piece in ids_BT.split(PACKED, 1)]
        documents_BT = torch.repeat_interleave(torch.arange(len(PACKED)), torch.tensor(PACKED)).expand(2, -1)
        close("packed, each within", ours(ids_BT, documents_BT), torch.cat(short, 1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_what_is_not_exact_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        read_config({**PUBLISHED, **changes})


def test_a_family_that_turns_whole_heads_refuses_a_share():
    values = {**SMALL, "model_type": "llama", "partial_rotary_factor": 0.5}
    with pytest.raises(UserError, match=r"partial_rotary_factor=0\.5; a llama model turns whole heads"):
        read_config(values)
