"""Llama 1, 2 and 3, and models of their shape, SmolLM among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import (
    attention_rules,
    gated_rules,
    outer_rules,
    read_gated,
    read_heads,
    read_shape,
    write_gated,
    write_heads,
    write_shape,
)
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rope import read_rope, write_rope
from nachim.model.hf.rules import Rule, layers, module
from nachim.spec import Attention, Decoder, RMSNorm
from nachim.spec.model import Block


def to_spec(config: Config) -> Decoder:
    """The decoder of a Llama config."""
    config.without_effect("max_position_embeddings")
    heads = read_heads(config)
    bias = "all" if config.get("attention_bias", False) else "none"
    return Decoder(
        **read_shape(config),
        attention=Attention(**heads, bias=bias),
        ffn=read_gated(config, config.need("intermediate_size"), bias=config.get("mlp_bias", False)),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        position=read_rope(config, heads["d_head"]),
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Llama config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        **written(decoder, context),
        **write_rope(block.position, block.mixer.d_head),
        "attention_bias": block.mixer.bias == "all",
        "mlp_bias": block.ffn.bias,
    }


def written(decoder: Decoder, context: int) -> dict[str, Any]:
    """The keys that Llama and its many relatives have in common, those of positions apart."""
    block = decoder.blocks[0]
    return {
        **write_shape(decoder, context),
        **write_heads(block.mixer),
        "intermediate_size": block.ffn.d_ff,
        "hidden_act": write_gated(block.ffn),
        "rms_norm_eps": decoder.norm.eps,
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a Llama checkpoint, and of its relatives with norms before both sublayers."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm")
        yield from module("ffn_norm", "post_attention_layernorm")
        yield from attention_rules(block)
        yield from gated_rules(bias=block.ffn.bias)

    yield from outer_rules()
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (Family("llama", "LlamaForCausalLM", to_spec, to_config, rules),)
