"""Phi-3 and Phi-4-mini: Llama with fused projections, partly rotary heads and LongRoPE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import outer_rules, read_gated, read_heads, read_shape
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.llama import written
from nachim.model.hf.rope import ORIGINAL, read_rope, write_rope
from nachim.model.hf.rules import Rule, layers, module
from nachim.spec import Attention, Decoder, LongRoPE, RMSNorm, RoPE
from nachim.spec.model import Block


def to_spec(config: Config) -> Decoder:
    """The decoder of a Phi-3 config."""
    config.without_effect("embd_pdrop", "max_position_embeddings", "resid_pdrop", ORIGINAL)
    config.only("attention_bias", False)
    heads = read_heads(config)
    return Decoder(
        **read_shape(config),
        attention=Attention(**heads, window=config.get("sliding_window")),
        ffn=read_gated(config, config.need("intermediate_size")),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-5)),
        position=position(config, heads["d_head"]),
    )


def position(config: Config, d_head: int) -> RoPE:
    """The rotary position of a Phi-3 config, whose original context is 4,096 tokens where it names none."""
    told = Config({ORIGINAL: 4096, **config.values}, config.where)
    found = read_rope(told, d_head, share=1.0)
    config.read |= told.read
    if not isinstance(found.scaling, LongRoPE | None):
        config.refuse("rope_scaling", config.get("rope_scaling"), "a phi3 model has 'longrope' or none")
    return found


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Phi-3 config nearest to a decoder. Older releases know the sort of scaling by its older name alone."""
    block = decoder.blocks[0]
    found = {**written(decoder, context), **write_rope(block.position, block.mixer.d_head)}
    if "rope_scaling" in found:
        found["rope_scaling"]["type"] = found["rope_scaling"].pop("rope_type")
    return {**found, "sliding_window": block.mixer.window}


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a Phi-3 checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm")
        yield from module("attention.qkv", "self_attn.qkv_proj")
        yield from module("attention.out", "self_attn.o_proj")
        yield from module("ffn_norm", "post_attention_layernorm")
        yield from module("ffn.gate_up", "mlp.gate_up_proj")
        yield from module("ffn.down", "mlp.down_proj")

    yield from outer_rules()
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (Family("phi3", "Phi3ForCausalLM", to_spec, to_config, rules),)
