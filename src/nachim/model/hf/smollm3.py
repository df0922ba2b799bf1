"""SmolLM3: Llama with layers that know no positions."""

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
from nachim.spec import Attention, Decoder, NoPosition, RMSNorm, RoPE


def to_spec(config: Config) -> Decoder:
    """The decoder of a SmolLM3 config."""
    config.without_effect("max_position_embeddings")
    heads = read_heads(config, 4)
    depth, every = config.need("num_hidden_layers"), config.get("no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers", [int((layer + 1) % every != 0) for layer in range(depth)])
    if len(turned) < depth:
        config.refuse("no_rope_layers", turned, f"it needs a 0 or 1 for each of {depth} layers")
    rope = read_rope(config, heads["d_head"], 2_000_000.0)
    width = config.get("sliding_window")
    window = width if config.get("use_sliding_window", False) else None
    sliding = [SLIDING if window is not None and not turns else FULL for turns in turned]
    kinds = config.get("layer_types", sliding)
    bias = "all" if config.get("attention_bias", False) else "none"
    return Decoder(
        **read_shape(config, tied=True),
        attention=over_layers(
            [Attention(**heads, bias=bias, window=window if kind == SLIDING else None) for kind in kinds[:depth]]
        ),
        ffn=read_gated(config, config.need("intermediate_size"), bias=config.get("mlp_bias", False)),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        position=over_layers([rope if turns else NoPosition() for turns in turned[:depth]]),
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The SmolLM3 config nearest to a decoder."""
    block = decoder.blocks[0]
    positions = [each.position for each in decoder.blocks]
    ropes = [position for position in positions if isinstance(position, RoPE)]
    window = window_of(decoder)
    return {
        **written(decoder, context),
        **(write_rope(ropes[0], block.mixer.d_head) if ropes else {}),
        "no_rope_layers": [int(isinstance(position, RoPE)) for position in positions],
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": layer_types(decoder),
        "attention_bias": block.mixer.bias == "all",
        "mlp_bias": block.ffn.bias,
    }


FAMILIES = (Family("smollm3", "SmolLM3ForCausalLM", to_spec, to_config, rules),)
