"""OLMo 2: norms behind the sublayers, and queries and keys normalised across their heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import attention_rules, gated_rules, outer_rules, read_gated, read_heads, read_shape
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.llama import written
from nachim.model.hf.rope import read_rope, write_rope
from nachim.model.hf.rules import Rule, layers, module
from nachim.spec import Attention, Decoder, OutputNorm, RMSNorm
from nachim.spec.model import Block


def to_spec(config: Config) -> Decoder:
    """The decoder of an OLMo 2 config."""
    config.without_effect("max_position_embeddings")
    heads, eps = read_heads(config), config.get("rms_norm_eps", 1e-5)
    bias = "all" if config.get("attention_bias", False) else "none"
    return Decoder(
        **read_shape(config),
        attention=Attention(**heads, bias=bias, qk_norm=True, qk_norm_over="all", qk_norm_eps=eps),
        ffn=read_gated(config, config.need("intermediate_size")),
        norm=RMSNorm(eps=eps),
        position=read_rope(config, heads["d_head"]),
        residual=OutputNorm(),
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The OLMo 2 config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        **written(decoder, context),
        **write_rope(block.position, block.mixer.d_head),
        "attention_bias": block.mixer.bias == "all",
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of an OLMo 2 checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from attention_rules(block)
        yield from module("attention_output_norm", "post_attention_layernorm")
        yield from gated_rules()
        yield from module("ffn_output_norm", "post_feedforward_layernorm")

    yield from outer_rules()
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (Family("olmo2", "Olmo2ForCausalLM", to_spec, to_config, rules),)
