"""Qwen2-MoE and Qwen3-MoE: Qwen with experts, in some or all of its layers; Qwen2's have a shared one with a gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import (
    FULL,
    SLIDING,
    attention_rules,
    expert_rules,
    gated_rules,
    layer_types,
    outer_rules,
    over_layers,
    read_gated,
    read_heads,
    read_shape,
    window_of,
    write_heads,
    write_shape,
)
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rope import read_rope, write_rope
from nachim.model.hf.rules import Rule, layers, module
from nachim.spec import Attention, Decoder, Gated, MoE, Part, Pattern, RMSNorm, UserError
from nachim.spec.model import Block


def qwen2_to_spec(config: Config) -> Decoder:
    """The decoder of a Qwen2-MoE config."""
    heads = {**read_heads(config), "n_kv_heads": config.get("num_key_value_heads", 16)}
    kind = {**heads, "bias": "qkv" if config.get("qkv_bias", True) else "none"}
    window = config.given("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    first, depth = config.get("max_window_layers", 28), config.need("num_hidden_layers")
    usual = [SLIDING if window and layer < first and layer % 2 == 0 else FULL for layer in range(depth)]
    kinds = config.get("layer_types", usual)
    if len(kinds) != depth or not set(kinds) <= {SLIDING, FULL} or (SLIDING in kinds and not window):
        config.refuse(
            "layer_types", kinds, f"it needs {FULL!r}, or {SLIDING!r} and a window, for each of {depth} layers"
        )
    attention = over_layers([Attention(**kind, window=window if each == SLIDING else None) for each in kinds])
    wide, narrow = config.get("shared_expert_intermediate_size", 5632), config.get("moe_intermediate_size", 1408)
    if wide % narrow:
        config.refuse("shared_expert_intermediate_size", wide, f"it is no multiple of moe_intermediate_size={narrow}")
    experts = MoE(
        d_ff=narrow,
        experts=config.get("num_experts", 60),
        active=config.get("num_experts_per_tok", 4),
        shared=wide // narrow,
        shared_gate=True,
        renormalise=config.get("norm_topk_prob", False),
    )
    return _decoder(config, attention, heads["d_head"], experts, 5632)


def qwen3_to_spec(config: Config) -> Decoder:
    """The decoder of a Qwen3-MoE config; its window, where it has one, is that of all layers."""
    heads = {**read_heads(config), "n_kv_heads": config.get("num_key_value_heads", 4)}
    attention = Attention(
        **heads,
        bias="all" if config.get("attention_bias", False) else "none",
        qk_norm=True,
        qk_norm_eps=config.get("rms_norm_eps", 1e-6),
        window=config.given("sliding_window", 4096) if config.get("use_sliding_window", False) else None,
    )
    experts = MoE(
        d_ff=config.get("moe_intermediate_size", 768),
        experts=config.get("num_experts", config.get("num_local_experts", 128)),
        active=config.get("num_experts_per_tok", 8),
        renormalise=config.get("norm_topk_prob", False),
    )
    return _decoder(config, attention, heads["d_head"], experts, 6144)


def _decoder(config: Config, attention: Part | Pattern, d_head: int, experts: MoE, d_ff: int) -> Decoder:
    """What both have alike; `d_ff` is the default width of layers without experts."""
    config.without_effect("max_position_embeddings", "output_router_logits", "router_aux_loss_coef")
    config.without_effect("intermediate_size", "sliding_window", "max_window_layers")
    config.only("hidden_act", "silu")
    step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers", [])
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in range(config.need("num_hidden_layers"))]
    plain = experts if all(sparse) else read_gated(config, config.get("intermediate_size", d_ff))
    return Decoder(
        **read_shape(config),
        attention=attention,
        ffn=over_layers([experts if routed else plain for routed in sparse]),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        position=read_rope(config, d_head),
    )


def _experts_of(decoder: Decoder) -> MoE:
    """The experts of the first layer that has any. Raises UserError where none has."""
    found = [block.ffn for block in decoder.blocks if isinstance(block.ffn, MoE)]
    if not found:
        raise UserError("these families have experts, and this decoder has none")
    return found[0]


def _written(decoder: Decoder, context: int) -> dict[str, Any]:
    """The keys that both have."""
    first = decoder.blocks[0]
    part = _experts_of(decoder)
    dense = [layer for layer, block in enumerate(decoder.blocks) if isinstance(block.ffn, Gated)]
    return {
        **write_shape(decoder, context),
        **write_heads(first.mixer),
        **write_rope(first.position, first.mixer.d_head),
        "decoder_sparse_step": 1,
        "hidden_act": "silu",
        **({"intermediate_size": decoder.blocks[dense[0]].ffn.d_ff} if dense else {}),
        "mlp_only_layers": dense,
        "moe_intermediate_size": part.d_ff,
        "norm_topk_prob": part.renormalised,
        "num_experts": part.experts,
        "num_experts_per_tok": part.active,
        "rms_norm_eps": decoder.norm.eps,
        "use_sliding_window": window_of(decoder) is not None,
        "sliding_window": window_of(decoder),
    }


def qwen2_to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Qwen2-MoE config nearest to a decoder."""
    part = _experts_of(decoder)
    return {
        **_written(decoder, context),
        "layer_types": layer_types(decoder),
        "qkv_bias": decoder.blocks[0].mixer.bias == "qkv",
        "shared_expert_intermediate_size": part.shared * part.d_ff,
    }


def qwen3_to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Qwen3-MoE config nearest to a decoder."""
    return {**_written(decoder, context), "attention_bias": decoder.blocks[0].mixer.bias == "all"}


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a checkpoint of either."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm")
        yield from module("ffn_norm", "post_attention_layernorm")
        yield from attention_rules(block)
        yield from _expert_rules(block.ffn) if isinstance(block.ffn, MoE) else gated_rules()

    yield from outer_rules()
    yield from layers(decoder, "model.layers.{}.", block_rules)


def _expert_rules(part: MoE) -> Iterator[Rule]:
    yield from module("ffn.router", "mlp.gate")
    yield from expert_rules(part, "mlp.experts")
    if part.shared:
        yield from gated_rules("ffn.shared", "mlp.shared_expert")
        yield from module("ffn.shared_gate", "mlp.shared_expert_gate")


FAMILIES = (
    Family("qwen2_moe", "Qwen2MoeForCausalLM", qwen2_to_spec, qwen2_to_config, rules),
    Family("qwen3_moe", "Qwen3MoeForCausalLM", qwen3_to_spec, qwen3_to_config, rules),
)
