"""GPT-2 against transformers."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

import nachim
from nachim.model.hf import read_config
from nachim.spec import UserError
from tests.model.hf.parity import hold, hold_bitwise, hold_published, reference

SHAPE = {"vocab_size": 40, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 24}
CONFIGS = {
    "plain": GPT2Config(**SHAPE),
    "scores by layer": GPT2Config(**SHAPE, scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
    "scores unscaled, untied": GPT2Config(
        **SHAPE,
        n_inner=48,
        scale_attn_weights=False,
        activation_function="relu",
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-2,
    ),
}
PUBLISHED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
GPT2 = 124_439_808
"""Parameters of the smallest GPT-2, the head being the embedding."""


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


def test_as_published():
    assert hold_published(PUBLISHED).params_total == GPT2


def test_tensors_without_prefix_and_with_masks_open_as_well(tmp_path):
    model = reference(CONFIGS["plain"])
    model.save_pretrained(tmp_path)
    expected = dict(nachim.load(tmp_path).named_parameters())
    bare = {name.removeprefix("transformer."): x for name, x in load_file(tmp_path / "model.safetensors").items()}
    masks = {f"h.{layer}.attn.bias": model.transformer.wpe.weight.detach().clone() for layer in range(3)}
    save_file({**bare, **masks}, tmp_path / "model.safetensors")
    hold_bitwise(dict(nachim.load(tmp_path).named_parameters()), expected)


def test_cross_attention_is_refused():
    with pytest.raises(UserError, match="add_cross_attention"):
        read_config({**PUBLISHED, "add_cross_attention": True})
