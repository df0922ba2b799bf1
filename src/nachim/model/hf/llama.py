"""Llama 1, 2 and 3, and models of their shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rope import read_rope, write_rope
from nachim.model.hf.rules import Rule, cat, layers, module
from nachim.spec import Attention, Decoder, RMSNorm, SwiGLU
from nachim.spec.model import Block


def read_heads(config: Config) -> dict[str, int]:
    """Number and width of heads, as most families write them."""
    heads = config.need("num_attention_heads")
    return {
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads", heads),
        "d_head": config.get("head_dim", config.need("hidden_size") // heads),
    }


def write_heads(part: Attention) -> dict[str, int]:
    """The keys that `read_heads` reads."""
    return {"num_attention_heads": part.n_heads, "num_key_value_heads": part.n_kv_heads, "head_dim": part.d_head}


def read_shape(config: Config, tied: bool = False) -> dict[str, Any]:
    """Vocabulary, width, depth and whether the head is the embedding; `tied` is the family's default."""
    return {
        "vocab_size": config.need("vocab_size"),
        "d_model": config.need("hidden_size"),
        "n_layers": config.need("num_hidden_layers"),
        "tied": config.get("tie_word_embeddings", tied),
    }


def write_shape(decoder: Decoder, context: int) -> dict[str, Any]:
    """The keys that `read_shape` reads, and the longest context."""
    return {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.d_model,
        "num_hidden_layers": decoder.n_layers,
        "tie_word_embeddings": decoder.tied,
        "max_position_embeddings": context,
    }


def to_spec(config: Config) -> Decoder:
    """The decoder of a Llama config."""
    config.without_effect("max_position_embeddings")
    config.only("hidden_act", "silu")
    config.only("mlp_bias", False)
    bias = "all" if config.get("attention_bias", False) else "none"
    return Decoder(
        **read_shape(config),
        attention=Attention(**read_heads(config), bias=bias),
        ffn=SwiGLU(d_ff=config.need("intermediate_size")),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        position=read_rope(config),
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Llama config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        **write_shape(decoder, context),
        **write_heads(block.mixer),
        **write_rope(block.position, context),
        "intermediate_size": block.ffn.d_ff,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm.eps,
        "attention_bias": block.mixer.bias == "all",
        "mlp_bias": False,
    }


def attention_rules(block: Block, theirs: str = "self_attn") -> Iterator[Rule]:
    """Separate projections of queries, keys, values and output; norms of queries and keys where there are."""
    part = block.mixer
    rows = (part.n_heads, part.n_kv_heads, part.n_kv_heads)
    parts = [f"{theirs}.{letter}_proj" for letter in "qkv"]
    yield from module("attention.qkv", parts, cat(*rows), bias=part.bias != "none")
    yield from module("attention.out", f"{theirs}.o_proj", bias=part.bias == "all")
    if part.qk_norm:
        yield from module("attention.q_norm", f"{theirs}.q_norm")
        yield from module("attention.k_norm", f"{theirs}.k_norm")


def gated_rules(ours: str = "ffn", theirs: str = "mlp") -> Iterator[Rule]:
    """A gated feed-forward of three matrices."""
    yield from module(f"{ours}.gate_up", (f"{theirs}.gate_proj", f"{theirs}.up_proj"), cat(1, 1))
    yield from module(f"{ours}.down", f"{theirs}.down_proj")


def outer_rules() -> Iterator[Rule]:
    """Embedding, last norm and head."""
    yield from module("embedding", "model.embed_tokens")
    yield from module("norm", "model.norm")
    yield from module("head", "lm_head")


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a Llama checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm")
        yield from module("ffn_norm", "post_attention_layernorm")
        yield from attention_rules(block)
        yield from gated_rules()

    yield from outer_rules()
    yield from layers(decoder, "model.layers.{}.", block_rules)


FAMILIES = (Family("llama", "LlamaForCausalLM", to_spec, to_config, rules),)
