"""Mamba, Mamba-2 and Jamba against transformers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, JambaConfig, Mamba2Config, MambaConfig

import nachim
from nachim.model.hf import config_for, read_config
from nachim.spec import Attention, Mamba, MoE, NoPosition, Pattern, RoPE, SwiGLU, UserError
from nachim.spec.known import known
from tests.model.hf.parity import SMALL, close, hold, hold_published, reference

SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 5}
JAMBA = {**SMALL, "num_key_value_heads": 2, "num_experts": 4, "mamba_d_state": 5, "mamba_dt_rank": 3, "pad_token_id": 0}
CONFIGS = {
    "mamba": MambaConfig(**SHAPE),
    "mamba, its own head": MambaConfig(
        **SHAPE, conv_kernel=3, time_step_rank=3, expand=3, layer_norm_epsilon=1e-3, tie_word_embeddings=False
    ),
    "mamba2": Mamba2Config(**SHAPE, num_heads=4, head_dim=8, n_groups=2, chunk_size=4),
    "mamba2, tied": Mamba2Config(
        **SHAPE,
        num_heads=6,
        head_dim=8,
        expand=3,
        n_groups=1,
        conv_kernel=3,
        layer_norm_epsilon=1e-3,
        tie_word_embeddings=True,
    ),
    "jamba": JambaConfig(
        **{**JAMBA, "num_hidden_layers": 4},
        attn_layer_period=3,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        rms_norm_eps=1e-3,
    ),
    "jamba, dense, tied": JambaConfig(
        **{**JAMBA, "num_experts": 1},
        attn_layer_period=2,
        attn_layer_offset=0,
        mamba_d_conv=3,
        mamba_expand=1,
        tie_word_embeddings=True,
    ),
}
MAMBA_130M = {
    "model_type": "mamba",
    "architectures": ["MambaForCausalLM"],
    "bos_token_id": 0,
    "conv_kernel": 4,
    "d_inner": 1536,
    "d_model": 768,
    "eos_token_id": 0,
    "expand": 2,
    "fused_add_norm": True,
    "hidden_act": "silu",
    "hidden_size": 768,
    "initializer_range": 0.1,
    "intermediate_size": 1536,
    "layer_norm_epsilon": 1e-05,
    "n_layer": 24,
    "num_hidden_layers": 24,
    "pad_token_id": 0,
    "pad_vocab_size_multiple": 8,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "ssm_cfg": {},
    "state_size": 16,
    "time_step_floor": 0.0001,
    "time_step_init_scheme": "random",
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 48,
    "time_step_scale": 1.0,
    "torch_dtype": "float32",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 50280,
}
MAMBA2_7B = {
    "model_type": "mamba2",
    "architectures": ["Mamba2ForCausalLM"],
    "bos_token_id": 0,
    "chunk_size": 256,
    "conv_kernel": 4,
    "eos_token_id": 0,
    "expand": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.1,
    "intermediate_size": 8192,
    "layer_norm_epsilon": 1e-05,
    "n_groups": 8,
    "norm_before_gate": True,
    "num_heads": 128,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "state_size": 128,
    "tie_word_embeddings": False,
    "time_step_floor": 0.0001,
    "time_step_limit": [0.0, math.inf],
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 256,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 32768,
}
JAMBA_0_1 = {
    "model_type": "jamba",
    "architectures": ["JambaForCausalLM"],
    "attention_dropout": 0.0,
    "attn_layer_offset": 4,
    "attn_layer_period": 8,
    "bos_token_id": 1,
    "calc_logits_for_entire_prompt": False,
    "eos_token_id": 2,
    "expert_layer_offset": 1,
    "expert_layer_period": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_state": 16,
    "mamba_dt_rank": 256,
    "mamba_expand": 2,
    "mamba_inner_layernorms": True,
    "mamba_proj_bias": False,
    "max_position_embeddings": 262144,
    "num_attention_heads": 32,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_logits_to_keep": 1,
    "output_router_logits": False,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mamba_kernels": True,
    "vocab_size": 65536,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_the_way_back(name, tmp_path):
    hold(CONFIGS[name], tmp_path)


def test_mamba_as_published():
    decoder = hold_published(MAMBA_130M)
    assert decoder.attention == Mamba(d_inner=1536, dt_rank=48)
    assert decoder.tied


def test_mamba_2_as_published():
    decoder = hold_published(MAMBA2_7B)
    assert (decoder.attention.n_groups, decoder.attention.chunk) == (8, 256)


def test_mamba_2_of_the_catalogue_is_that_of_its_config():
    decoder = known("mamba2-130m").decoder
    shape = {"hidden_size": 768, "num_hidden_layers": 24, "num_heads": 24, "vocab_size": 50_288, "n_groups": 1}
    _, _, read = read_config({**MAMBA2_7B, **shape, "tie_word_embeddings": True})
    assert read == decoder


def test_jamba_as_published():
    """The tensors of experts are stored one by one, and fused in transformers' module: they are counted."""
    _, config, decoder = read_config(JAMBA_0_1)
    assert not config.unknown
    theirs = JambaConfig(**JAMBA_0_1)
    assert read_config(theirs.to_dict())[2] == decoder
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    assert decoder.params_total == sum(weight.numel() for weight in model.parameters())
    assert [number for number, block in enumerate(decoder.blocks) if isinstance(block.mixer, Attention)] == [
        4,
        12,
        20,
        28,
    ]
    assert [number for number, block in enumerate(decoder.blocks) if isinstance(block.ffn, MoE)] == list(
        range(1, 32, 2)
    )


@pytest.mark.parametrize(
    ("values", "changes", "said"),
    [
        (MAMBA_130M, {"use_bias": True}, "use_bias=True"),
        (MAMBA_130M, {"use_conv_bias": False}, "use_conv_bias=False"),
        (MAMBA_130M, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (MAMBA2_7B, {"time_step_limit": [0.0, 0.1]}, r"time_step_limit=\[0.0, 0.1\]; only steps without limits"),
        (MAMBA2_7B, {"num_heads": 64}, r"num_heads=64; heads of 64 must make up expand \* hidden_size channels"),
        (JAMBA_0_1, {"mamba_proj_bias": True}, "mamba_proj_bias=True"),
        (JAMBA_0_1, {"mamba_inner_layernorms": False}, "mamba_inner_layernorms=False"),
        (JAMBA_0_1, {"sliding_window": 4096}, "sliding_window=4096"),
    ],
)
def test_what_is_not_exact_is_refused(values, changes, said):
    with pytest.raises(UserError, match=said):
        read_config({**values, **changes})


def test_steps_of_an_automatic_rank_are_a_sixteenth_of_the_width():
    _, _, decoder = read_config({**MAMBA_130M, "time_step_rank": "auto", "hidden_size": 770})
    assert decoder.attention.dt_rank == 49


@pytest.mark.parametrize("attends", [(), (0,), (1,), (1, 4), (0, 2, 4)])
def test_layers_in_turn_are_found_again(attends):
    """A decoder of our own, exported: layers with attention, experts in none."""
    _, _, whole = read_config({**JAMBA_0_1, "num_hidden_layers": 5})
    state, attention = whole.blocks[0].mixer, whole.blocks[4].mixer
    parts = tuple(attention if layer in attends else state for layer in range(5))
    decoder = dataclasses.replace(whole, attention=Pattern(parts=parts), ffn=SwiGLU(d_ff=64))
    family, values = config_for(decoder, 64)
    assert family.model_type == "jamba"
    assert read_config(values)[2].blocks == decoder.blocks


def test_layers_without_turns_are_refused():
    _, _, whole = read_config({**JAMBA_0_1, "num_hidden_layers": 4})
    state, attention = whole.blocks[0].mixer, Attention(n_heads=32, n_kv_heads=8, d_head=128)
    uneven = dataclasses.replace(whole, attention=Pattern(parts=(attention, state, attention, attention)))
    with pytest.raises(UserError, match="no Hugging Face family known here can express this decoder"):
        config_for(uneven, 64)


def test_padding_in_transformers_and_documents_here_agree_at_every_length(tmp_path):
    """Padding shorter and longer than the convolution's reach."""
    model = reference(CONFIGS["mamba2"])
    model.save_pretrained(tmp_path)
    ours = nachim.load(tmp_path)
    ids_T = torch.randint(0, 40, (7,))
    with torch.no_grad():
        expected = model(ids_T[None], use_cache=False).logits
        for padding in range(1, 6):
            documents_BT = torch.tensor([[-1] * padding + [0] * 7])
            ids_BT = torch.cat((torch.randint(0, 40, (padding,)), ids_T))[None]
            close(f"{padding} of padding", ours(ids_BT, documents_BT)[:, padding:], expected)


def test_a_state_with_a_position_that_it_never_asks_for_is_exported(tmp_path):
    """RoPE is a decoder's default, and nothing to a state; in a layer of attention it is in the way."""
    _, _, decoder = read_config(MAMBA_130M)
    turned = dataclasses.replace(decoder, position=RoPE())
    family, values = config_for(turned, 64)
    assert family.model_type == "mamba"
    assert read_config(values)[2] == decoder
    _, _, hybrid = read_config({**JAMBA_0_1, "num_hidden_layers": 8})
    silent = (RoPE(),) * 4 + (NoPosition(),) + (RoPE(),) * 3
    assert config_for(dataclasses.replace(hybrid, position=Pattern(parts=silent)), 64)[0].model_type == "jamba"
    with pytest.raises(UserError, match="no Hugging Face family known here can express this decoder"):
        config_for(dataclasses.replace(hybrid, position=RoPE()), 64)
