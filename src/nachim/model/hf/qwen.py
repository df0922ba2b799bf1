"""Qwen2 and Qwen3, dense: Llama with biases on queries, keys and values, or with their norms; later layers may have a
window."""

from __future__ import annotations

from typing import Any

from nachim.model.hf.common import (
    FULL,
    SLIDING,
    layer_types,
    over_layers,
    read_gated,
    read_heads,
    read_shape,
    window_of,
)
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.llama import rules, written
from nachim.model.hf.rope import read_rope, write_rope
from nachim.spec import Attention, Decoder, Part, Pattern, RMSNorm


def read_windows(config: Config, **heads: Any) -> Part | Pattern:
    """The attention of all layers: a window on those that `layer_types` names, else on those from a number on."""
    used = config.get("use_sliding_window", False)
    width, first = config.given("sliding_window", 4096), config.get("max_window_layers", 28)
    window = width if used else None
    depth = config.need("num_hidden_layers")
    after = [SLIDING if window is not None and layer >= first else FULL for layer in range(depth)]
    kinds = config.get("layer_types", after)
    if len(kinds) != depth or not set(kinds) <= {SLIDING, FULL}:
        config.refuse("layer_types", kinds, f"it needs {SLIDING!r} or {FULL!r} for each of {depth} layers")
    return over_layers([Attention(**heads, window=window if kind == SLIDING else None) for kind in kinds])


def write_windows(decoder: Decoder) -> dict[str, Any]:
    """The keys that `read_windows` reads; releases without `layer_types` read the number of the first window."""
    kinds, window = layer_types(decoder), window_of(decoder)
    if window is None:
        return {"use_sliding_window": False}
    return {
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": kinds.index(SLIDING),
        "layer_types": kinds,
    }


def qwen2_to_spec(config: Config) -> Decoder:
    """The decoder of a Qwen2 config."""
    return _to_spec(config, {**read_heads(config, 32), "bias": "qkv"})


def qwen3_to_spec(config: Config) -> Decoder:
    """The decoder of a Qwen3 config."""
    heads = read_heads(config, 32, 128)
    bias = "all" if config.get("attention_bias", False) else "none"
    eps = config.get("rms_norm_eps", 1e-6)
    return _to_spec(config, {**heads, "bias": bias, "qk_norm": True, "qk_norm_eps": eps})


def _to_spec(config: Config, heads: dict[str, Any]) -> Decoder:
    config.without_effect("max_position_embeddings")
    return Decoder(
        **read_shape(config),
        attention=read_windows(config, **heads),
        ffn=read_gated(config, config.need("intermediate_size")),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        position=read_rope(config, heads["d_head"]),
    )


def qwen2_to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Qwen2 config nearest to a decoder."""
    block = decoder.blocks[0]
    rope = write_rope(block.position, block.mixer.d_head)
    return {**written(decoder, context), **rope, **write_windows(decoder)}


def qwen3_to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Qwen3 config nearest to a decoder."""
    return {**qwen2_to_config(decoder, context), "attention_bias": decoder.blocks[0].mixer.bias == "all"}


FAMILIES = (
    Family("qwen2", "Qwen2ForCausalLM", qwen2_to_spec, qwen2_to_config, rules),
    Family("qwen3", "Qwen3ForCausalLM", qwen3_to_spec, qwen3_to_config, rules),
)
