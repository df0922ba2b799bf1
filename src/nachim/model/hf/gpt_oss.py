"""gpt-oss: sinks, a window in every other layer, experts with biases and clipped gates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nachim.model.hf.common import (
    FULL,
    SLIDING,
    attention_rules,
    layer_types,
    outer_rules,
    over_layers,
    read_heads,
    read_shape,
    window_of,
    write_heads,
    write_shape,
)
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rope import ORIGINAL, rope, write_rope
from nachim.model.hf.rules import TURN, Rule, Transform, each, layers, module, rule
from nachim.spec import Attention, Decoder, MoE, Part, Pattern, RMSNorm
from nachim.spec.model import Block

STRETCHED = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    ORIGINAL: 4096,
}
"""The rotary position of a config that tells none."""


def to_spec(config: Config) -> Decoder:
    """The decoder of a gpt-oss config."""
    config.without_effect("experts_per_token", "initial_context_length", "output_router_logits", "router_aux_loss_coef")
    config.without_effect("max_position_embeddings")
    config.only("hidden_act", "silu")
    config.only("swiglu_alpha", 1.702)
    heads = read_heads(config, 8, 64)
    given = config.get("rope_parameters") or config.get("rope_scaling") or STRETCHED
    return Decoder(
        **read_shape(config),
        attention=attention(config, heads),
        ffn=MoE(
            d_ff=config.need("intermediate_size"),
            experts=config.either("num_local_experts", "num_experts"),
            active=config.get("num_experts_per_tok", 4),
            renormalise=True,
            bias=True,
            limit=config.get("swiglu_limit", 7.0),
        ),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-5)),
        position=rope(config, given, heads["d_head"], config.get("rope_theta", 150_000.0)),
    )


def attention(config: Config, heads: dict[str, int]) -> Part | Pattern:
    """The attention of all layers; those that `layer_types` does not tell have a window, every other one from the
    first on."""
    depth, window = config.need("num_hidden_layers"), config.get("sliding_window", 128)
    kinds = config.get("layer_types", [FULL if layer % 2 else SLIDING for layer in range(depth)])
    if len(kinds) != depth or not set(kinds) <= {SLIDING, FULL}:
        config.refuse("layer_types", kinds, f"it needs {SLIDING!r} or {FULL!r} for each of {depth} layers")
    bias = "all" if config.get("attention_bias", True) else "none"
    return over_layers(
        [Attention(**heads, bias=bias, sinks=True, window=window if kind == SLIDING else None) for kind in kinds]
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The gpt-oss config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        **write_shape(decoder, context),
        **write_heads(block.mixer),
        "rope_scaling": {"rope_type": "default"},
        **write_rope(block.position, block.mixer.d_head),
        "attention_bias": block.mixer.bias == "all",
        "sliding_window": window_of(decoder) or 128,
        "layer_types": layer_types(decoder),
        "intermediate_size": block.ffn.d_ff,
        "num_local_experts": block.ffn.experts,
        "num_experts_per_tok": block.ffn.active,
        "swiglu_limit": block.ffn.limit,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm.eps,
    }


def alternating() -> Transform:
    """Second axis: rows of gate and up in turns, to those of the gate and then those of up."""

    def read(x: Tensor) -> Tensor:
        return torch.cat((x[:, ::2], x[:, 1::2]), 1)

    def write(x: Tensor) -> Tensor:
        return torch.stack(x.chunk(2, 1), 2).flatten(1, 2)

    return each(read, write)


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a gpt-oss checkpoint that is not quantised."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm")
        yield from attention_rules(block)
        yield rule("attention.sinks", "self_attn.sinks")
        yield from module("ffn_norm", "post_attention_layernorm")
        yield from module("ffn.router", "mlp.router", bias=True)
        yield rule("ffn.experts.gate_up.weight", "mlp.experts.gate_up_proj", TURN.then(alternating()))
        yield rule("ffn.experts.gate_up.bias", "mlp.experts.gate_up_proj_bias", alternating())
        yield rule("ffn.experts.down.weight", "mlp.experts.down_proj", TURN)
        yield rule("ffn.experts.down.bias", "mlp.experts.down_proj_bias")

    yield from outer_rules()
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (Family("gpt_oss", "GptOssForCausalLM", to_spec, to_config, rules),)
