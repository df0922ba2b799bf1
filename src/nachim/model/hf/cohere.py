"""Command R: attention and feed-forward side by side, rotary pairs of neighbours, logits scaled down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import (
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
from nachim.model.hf.rules import Rule, cat, first, half_split, layers, module
from nachim.spec import Attention, Decoder, LayerNorm, Parallel
from nachim.spec.model import Block


def to_spec(config: Config) -> Decoder:
    """The decoder of a Command R config."""
    config.without_effect("max_position_embeddings", "model_max_length")
    config.only("use_qk_norm", False)
    heads = read_heads(config)
    bias = "all" if config.get("attention_bias", False) else "none"
    return Decoder(
        **read_shape(config, tied=True),
        attention=Attention(**heads, bias=bias),
        ffn=read_gated(config, config.need("intermediate_size")),
        norm=LayerNorm(eps=config.get("layer_norm_eps", 1e-5), bias=False),
        position=read_rope(config, heads["d_head"], theta=500_000.0),
        residual=Parallel(shared=True),
        logit_scale=config.get("logit_scale", 0.0625),
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Command R config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        **write_shape(decoder, context),
        **write_heads(block.mixer),
        **write_rope(block.position, block.mixer.d_head),
        "intermediate_size": block.ffn.d_ff,
        "hidden_act": write_gated(block.ffn),
        "layer_norm_eps": decoder.norm.eps,
        "attention_bias": block.mixer.bias == "all",
        "logit_scale": decoder.logit_scale,
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a Command R checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        part, bias = block.mixer, block.mixer.bias == "all"
        rows = (part.n_heads, part.n_kv_heads, part.n_kv_heads)
        turned = first(2, half_split(part.d_head)).then(cat(*rows))
        yield from module("attention_norm", "input_layernorm")
        yield from module("attention.qkv", [f"self_attn.{letter}_proj" for letter in "qkv"], turned, bias=bias)
        yield from module("attention.out", "self_attn.o_proj", bias=bias)
        yield from gated_rules()

    yield from outer_rules()
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (Family("cohere", "CohereForCausalLM", to_spec, to_config, rules),)
