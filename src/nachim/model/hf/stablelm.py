"""StableLM: partly rotary heads, LayerNorm, gated feed-forwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import (
    attention_rules,
    gated_rules,
    outer_rules,
    read_gated,
    read_shape,
    write_gated,
    write_shape,
)
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rope import read_rope, write_rope
from nachim.model.hf.rules import Rule, layers, module, rule
from nachim.spec import Attention, Decoder, LayerNorm, Parallel, PreNorm
from nachim.spec.model import Block


def to_spec(config: Config) -> Decoder:
    """The decoder of a StableLM config."""
    config.without_effect("hidden_dropout", "max_position_embeddings")
    config.only("qk_layernorm", False)
    shape, heads = read_shape(config), config.need("num_attention_heads")
    d_head, n_kv_heads = shape["d_model"] // heads, config.get("num_key_value_heads", heads)
    bias = "qkv" if config.get("use_qkv_bias", False) else "none"
    return Decoder(
        **shape,
        attention=Attention(n_heads=heads, n_kv_heads=n_kv_heads, d_head=d_head, bias=bias),
        ffn=read_gated(config, config.need("intermediate_size")),
        norm=LayerNorm(eps=config.get("layer_norm_eps", 1e-5)),
        position=read_rope(config, d_head, share=0.25),
        residual=Parallel(shared=True) if config.get("use_parallel_residual", False) else PreNorm(),
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The StableLM config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        **write_shape(decoder, context),
        "partial_rotary_factor": 1.0,
        **write_rope(block.position, block.mixer.d_head),
        "num_attention_heads": block.mixer.n_heads,
        "num_key_value_heads": block.mixer.n_kv_heads,
        "intermediate_size": block.ffn.d_ff,
        "hidden_act": write_gated(block.ffn),
        "layer_norm_eps": decoder.norm.eps,
        "use_qkv_bias": block.mixer.bias == "qkv",
        "use_parallel_residual": isinstance(decoder.residual, Parallel),
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a StableLM checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm", bias=True)
        yield from attention_rules(block)
        if isinstance(decoder.residual, PreNorm):
            yield from module("ffn_norm", "post_attention_layernorm", bias=True)
        yield from gated_rules()

    yield from outer_rules()
    yield rule("norm.bias", "model.norm.bias")
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (Family("stablelm", "StableLmForCausalLM", to_spec, to_config, rules),)
