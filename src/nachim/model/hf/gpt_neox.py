"""GPT-NeoX and Pythia: partly rotary heads, queries, keys and values interleaved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import read_mlp, read_shape, write_mlp, write_shape
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rope import rope, write_scaling
from nachim.model.hf.rules import Rule, interleaved, layers, module
from nachim.spec import Attention, Decoder, LayerNorm, Parallel, PreNorm, RoPE
from nachim.spec.model import Block

IGNORED = (r".*\.attention\.(bias|masked_bias)", r".*\.rotary_emb\.inv_freq")
"""Masks and tables that older checkpoints hold."""


def to_spec(config: Config) -> Decoder:
    """The decoder of a GPT-NeoX config."""
    config.without_effect("classifier_dropout", "hidden_dropout", "is_decoder", "max_position_embeddings")
    shape, heads = read_shape(config), config.need("num_attention_heads")
    d_head = shape["d_model"] // heads
    bias = "all" if config.get("attention_bias", True) else "none"
    return Decoder(
        **shape,
        attention=Attention(n_heads=heads, n_kv_heads=heads, d_head=d_head, bias=bias),
        ffn=read_mlp(config, config.need("intermediate_size"), "hidden_act", "gelu", bias=True),
        norm=LayerNorm(eps=config.get("layer_norm_eps", 1e-5)),
        position=position(config, d_head),
        residual=Parallel() if config.get("use_parallel_residual", True) else PreNorm(),
    )


def position(config: Config, d_head: int) -> RoPE:
    """The rotary position of a GPT-NeoX config, which has older names of its own for base and share."""
    given = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    theta, share = config.get("rotary_emb_base", 10_000), config.get("rotary_pct", 0.25)
    return rope(config, given, d_head, theta, share)


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The GPT-NeoX config nearest to a decoder."""
    block = decoder.blocks[0]
    turned = block.position.turned(block.mixer.d_head)
    return {
        **write_shape(decoder, context),
        "num_attention_heads": block.mixer.n_heads,
        "intermediate_size": block.ffn.d_ff,
        "hidden_act": write_mlp(block.ffn),
        "layer_norm_eps": decoder.norm.eps,
        "attention_bias": block.mixer.bias == "all",
        "use_parallel_residual": isinstance(decoder.residual, Parallel),
        "rotary_emb_base": block.position.theta,
        "rotary_pct": turned / block.mixer.d_head,
        **write_scaling(block.position.scaling),
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a GPT-NeoX checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        bias = block.mixer.bias == "all"
        yield from module("attention_norm", "input_layernorm", bias=True)
        heads = interleaved((1, 1, 1), block.mixer.d_head)
        yield from module("attention.qkv", "attention.query_key_value", heads, bias=bias)
        yield from module("attention.out", "attention.dense", bias=bias)
        yield from module("ffn_norm", "post_attention_layernorm", bias=True)
        yield from module("ffn.up", "mlp.dense_h_to_4h", bias=True)
        yield from module("ffn.down", "mlp.dense_4h_to_h", bias=True)

    yield from module("embedding", "gpt_neox.embed_in")
    yield from module("norm", "gpt_neox.final_layer_norm", bias=True)
    yield from module("head", "embed_out")
    yield from layers(decoder, "gpt_neox.layers.{}.", block_rules)


FAMILIES = (Family("gpt_neox", "GPTNeoXForCausalLM", to_spec, to_config, rules, base="gpt_neox.", ignored=IGNORED),)
