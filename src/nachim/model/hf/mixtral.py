"""Mixtral: Mistral with experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import (
    attention_rules,
    expert_rules,
    outer_rules,
    read_heads,
    read_shape,
    write_heads,
    write_shape,
)
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rope import read_rope, write_rope
from nachim.model.hf.rules import Rule, layers, module
from nachim.spec import Attention, Decoder, MoE, RMSNorm
from nachim.spec.model import Block


def to_spec(config: Config) -> Decoder:
    """The decoder of a Mixtral config."""
    config.without_effect("max_position_embeddings", "output_router_logits", "router_aux_loss_coef")
    config.without_effect("router_jitter_noise")
    config.only("hidden_act", "silu")
    heads = {**read_heads(config), "n_kv_heads": config.get("num_key_value_heads", 8)}
    return Decoder(
        **read_shape(config),
        attention=Attention(**heads, window=config.get("sliding_window")),
        ffn=MoE(
            d_ff=config.need("intermediate_size"),
            experts=config.get("num_local_experts", config.get("num_experts", 8)),
            active=config.get("num_experts_per_tok", 2),
            renormalise=True,
        ),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-5)),
        position=read_rope(config, heads["d_head"], theta=1e6),
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Mixtral config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        **write_shape(decoder, context),
        **write_heads(block.mixer),
        **write_rope(block.position, block.mixer.d_head),
        "hidden_act": "silu",
        "intermediate_size": block.ffn.d_ff,
        "num_local_experts": block.ffn.experts,
        "num_experts_per_tok": block.ffn.active,
        "rms_norm_eps": decoder.norm.eps,
        "sliding_window": block.mixer.window,
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a Mixtral checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm")
        yield from module("ffn_norm", "post_attention_layernorm")
        yield from attention_rules(block)
        yield from module("ffn.router", "block_sparse_moe.gate")
        yield from expert_rules(block.ffn, "block_sparse_moe.experts", "w1", "w3", "w2")

    yield from outer_rules()
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (Family("mixtral", "MixtralForCausalLM", to_spec, to_config, rules),)
