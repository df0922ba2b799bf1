"""Mistral: Llama with a window."""

from __future__ import annotations

from typing import Any

from nachim.model.hf.common import read_gated, read_heads, read_shape
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.llama import rules, written
from nachim.model.hf.rope import read_rope, write_rope
from nachim.spec import Attention, Decoder, RMSNorm


def to_spec(config: Config) -> Decoder:
    """The decoder of a Mistral config. An absent window is 4,096 tokens, one that is null is none."""
    config.without_effect("max_position_embeddings")
    if config.get("layer_types") is not None:
        config.refuse("layer_types", config.get("layer_types"), "a mistral model has one window for all layers")
    heads = read_heads(config, 8)
    return Decoder(
        **read_shape(config),
        attention=Attention(**heads, window=config.given("sliding_window", 4096)),
        ffn=read_gated(config, config.need("intermediate_size")),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        position=read_rope(config, heads["d_head"]),
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Mistral config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        **written(decoder, context),
        **write_rope(block.position, block.mixer.d_head),
        "sliding_window": block.mixer.window,
    }


FAMILIES = (Family("mistral", "MistralForCausalLM", to_spec, to_config, rules),)
