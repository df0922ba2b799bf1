"""Gemma 2 and the text model of Gemma 3: sandwiched norms, a scaled embedding, local layers between global ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import (
    FULL,
    SLIDING,
    attention_rules,
    gated_rules,
    layer_types,
    outer_rules,
    over_layers,
    read_gated,
    read_heads,
    read_shape,
    window_of,
)
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.llama import written
from nachim.model.hf.rope import read_rope, rope, write_rope
from nachim.model.hf.rules import Rule, layers, module
from nachim.spec import Attention, Decoder, RMSNorm, RoPE, SandwichNorm
from nachim.spec.model import Block


def _heads(config: Config) -> dict[str, Any]:
    """What the attention of all layers has in common."""
    config.without_effect("max_position_embeddings", "hidden_act")
    config.only("use_bidirectional_attention", False)
    scale = config.get("query_pre_attn_scalar", 256) ** -0.5
    bias = "all" if config.get("attention_bias", False) else "none"
    return {**read_heads(config, 4, 256), "bias": bias, "scale": scale}


def _kinds(config: Config, every: int) -> list[str]:
    """The type of each layer; unless told, every `every`-th sees everything."""
    depth = config.need("num_hidden_layers")
    kinds = config.get("layer_types", [SLIDING if (layer + 1) % every else FULL for layer in range(depth)])
    if len(kinds) != depth or not set(kinds) <= {SLIDING, FULL}:
        config.refuse("layer_types", kinds, f"it needs {SLIDING!r} or {FULL!r} for each of {depth} layers")
    return kinds


def _decoder(config: Config, kinds: list[str], heads: dict[str, Any], **more: Any) -> Decoder:
    width = config.given("sliding_window", 4096)
    return Decoder(
        **read_shape(config, tied=True),
        attention=over_layers([Attention(**heads, window=width if kind == SLIDING else None) for kind in kinds]),
        ffn=read_gated(config, config.need("intermediate_size"), key="hidden_activation", default="gelu_pytorch_tanh"),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6), offset=True),
        residual=SandwichNorm(),
        embedding_scale=config.need("hidden_size") ** 0.5,
        **more,
    )


def gemma2_to_spec(config: Config) -> Decoder:
    """The decoder of a Gemma 2 config."""
    heads = _heads(config)
    position = read_rope(config, heads["d_head"])
    heads["softcap"] = config.given("attn_logit_softcapping", 50.0)
    cap = config.given("final_logit_softcapping", 30.0)
    return _decoder(config, _kinds(config, 2), heads, position=position, logit_cap=cap)


def gemma3_to_spec(config: Config) -> Decoder:
    """The decoder of a Gemma 3 text config. Local and global layers have rotary positions of their own."""
    config.only("attn_logit_softcapping", None)  # its attention would not read it
    config.without_effect("_sliding_window_pattern")
    heads = {**_heads(config), "qk_norm": True, "qk_norm_offset": True, "qk_norm_eps": config.get("rms_norm_eps", 1e-6)}
    kinds = _kinds(config, config.get("sliding_window_pattern", 6))
    given, width = config.get("rope_parameters", {FULL: {}, SLIDING: {}}), heads["d_head"]
    if not {FULL, SLIDING} & set(given):
        config.refuse("rope_parameters", given, f"it needs {FULL!r} and {SLIDING!r}")
    whole = {**(given.get(FULL) or {}), **config.get("rope_scaling", {})}
    ropes = {
        FULL: rope(config, whole, width, config.get("rope_theta", 1e6)),
        SLIDING: rope(config, given.get(SLIDING) or {}, width, config.get("rope_local_base_freq", 1e4)),
    }
    cap = config.get("final_logit_softcapping")
    return _decoder(config, kinds, heads, position=over_layers([ropes[kind] for kind in kinds]), logit_cap=cap)


def gemma2_to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Gemma 2 config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        **_written(decoder, context),
        **write_rope(block.position, block.mixer.d_head),
        "attn_logit_softcapping": block.mixer.softcap,
        "final_logit_softcapping": decoder.logit_cap,
    }


def gemma3_to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Gemma 3 text config nearest to a decoder."""
    found = {kind: block.position for kind, block in zip(layer_types(decoder), decoder.blocks, strict=True)}
    whole, local = found.get(FULL, RoPE(theta=1e6)), found.get(SLIDING, RoPE())
    return {
        **_written(decoder, context),
        **write_rope(whole, decoder.blocks[0].mixer.d_head),
        "rope_local_base_freq": local.theta,
        "final_logit_softcapping": decoder.logit_cap,
    }


def _written(decoder: Decoder, context: int) -> dict[str, Any]:
    part = decoder.blocks[0].mixer
    keys = written(decoder, context)
    return {
        **keys,
        "hidden_activation": keys.pop("hidden_act"),
        "attention_bias": part.bias == "all",
        "query_pre_attn_scalar": _scalar(part),
        "sliding_window": window_of(decoder),
        "layer_types": layer_types(decoder),
    }


def _scalar(part: Attention) -> float:
    """What -1/2 is the power of: a whole number where that gives the same scale."""
    scalar = part.factor**-2
    return round(scalar) if round(scalar) ** -0.5 == part.factor else scalar


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a Gemma 2 or 3 checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm")
        yield from module("attention_output_norm", "post_attention_layernorm")
        yield from module("ffn_norm", "pre_feedforward_layernorm")
        yield from module("ffn_output_norm", "post_feedforward_layernorm")
        yield from attention_rules(block)
        yield from gated_rules()

    yield from outer_rules()
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (
    Family("gemma2", "Gemma2ForCausalLM", gemma2_to_spec, gemma2_to_config, rules),
    Family("gemma3_text", "Gemma3ForCausalLM", gemma3_to_spec, gemma3_to_config, rules),
)
