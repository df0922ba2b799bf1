"""StarCoder2: rotary positions and a window, plain feed-forwards, biases everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import (
    attention_rules,
    outer_rules,
    read_heads,
    read_mlp,
    read_shape,
    write_heads,
    write_mlp,
    write_shape,
)
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rope import read_rope, write_rope
from nachim.model.hf.rules import Rule, layers, module, rule
from nachim.spec import Attention, Decoder, LayerNorm
from nachim.spec.model import Block


def to_spec(config: Config) -> Decoder:
    """The decoder of a StarCoder2 config."""
    config.without_effect("embedding_dropout", "max_position_embeddings", "residual_dropout")
    config.only("norm_type", "layer_norm")
    config.only("mlp_type", "default")
    heads, bias = read_heads(config), config.get("use_bias", True)
    heads["n_kv_heads"] = config.get("num_key_value_heads", 2)
    return Decoder(
        **read_shape(config, tied=True),
        attention=Attention(**heads, bias="all" if bias else "none", window=config.get("sliding_window")),
        ffn=read_mlp(config, config.need("intermediate_size"), "hidden_act", "gelu_pytorch_tanh", bias=bias),
        norm=LayerNorm(eps=config.get("norm_epsilon", 1e-5)),
        position=read_rope(config, heads["d_head"]),
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The StarCoder2 config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        **write_shape(decoder, context),
        **write_heads(block.mixer),
        **write_rope(block.position, block.mixer.d_head),
        "intermediate_size": block.ffn.d_ff,
        "hidden_act": write_mlp(block.ffn),
        "norm_epsilon": decoder.norm.eps,
        "sliding_window": block.mixer.window,
        "use_bias": block.ffn.bias,
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a StarCoder2 checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm", bias=True)
        yield from attention_rules(block)
        yield from module("ffn_norm", "post_attention_layernorm", bias=True)
        yield from module("ffn.up", "mlp.c_fc", bias=block.ffn.bias)
        yield from module("ffn.down", "mlp.c_proj", bias=block.ffn.bias)

    yield from outer_rules()
    yield rule("norm.bias", "model.norm.bias")
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (Family("starcoder2", "Starcoder2ForCausalLM", to_spec, to_config, rules),)
