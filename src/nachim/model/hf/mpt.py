"""MPT: ALiBi, norms without biases, queries, keys and values in one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rules import Rule, layers, module
from nachim.spec import MLP, ALiBi, Attention, Decoder, LayerNorm
from nachim.spec.model import Block

GROWTH = 4
"""Width of the feed-forward over that of the model: transformers computes no other, whatever the config says."""


def to_spec(config: Config) -> Decoder:
    """The decoder of an MPT config."""
    config.without_effect("emb_pdrop", "embedding_fraction", "init_device", "learned_pos_emb", "max_seq_len")
    config.without_effect("init_config", "resid_pdrop", "verbose")
    config.only("expansion_ratio", GROWTH)
    config.only("logit_scale", None)
    config.only("no_bias", True)
    config.only("norm_type", "low_precision_layernorm", "layernorm")
    inner = Config(config.get("attn_config", {}), f"{config.where} in attn_config")
    return Decoder(
        vocab_size=config.need("vocab_size"),
        d_model=config.need("d_model"),
        n_layers=config.need("n_layers"),
        tied=config.get("tie_word_embeddings", True),
        attention=attention(inner, config.need("d_model"), config.need("n_heads")),
        ffn=MLP(d_ff=GROWTH * config.need("d_model"), activation="gelu"),
        norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5), bias=False),
        position=ALiBi(),
    )


def attention(inner: Config, width: int, heads: int) -> Attention:
    """The attention of an `attn_config`."""
    inner.only("alibi", True)
    inner.only("alibi_bias_max", 8)
    inner.only("attn_type", "multihead_attention")
    for key, value in (("clip_qkv", None), ("prefix_lm", False), ("qk_ln", False)):
        inner.only(key, value)
    return Attention(n_heads=heads, n_kv_heads=heads, d_head=width // heads, scale=inner.get("softmax_scale"))


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The MPT config nearest to a decoder."""
    block = decoder.blocks[0]
    return {
        "vocab_size": decoder.vocab_size,
        "d_model": decoder.d_model,
        "n_layers": decoder.n_layers,
        "n_heads": block.mixer.n_heads,
        "max_seq_len": context,
        "tie_word_embeddings": decoder.tied,
        "expansion_ratio": GROWTH,
        "layer_norm_epsilon": decoder.norm.eps,
        "learned_pos_emb": False,
        "no_bias": True,
        "attn_config": {"alibi": True, "softmax_scale": block.mixer.scale},
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of an MPT checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "norm_1")
        yield from module("attention.qkv", "attn.Wqkv")
        yield from module("attention.out", "attn.out_proj")
        yield from module("ffn_norm", "norm_2")
        yield from module("ffn.up", "ffn.up_proj")
        yield from module("ffn.down", "ffn.down_proj")

    yield from module("embedding", "transformer.wte")
    yield from module("norm", "transformer.norm_f")
    yield from module("head", "lm_head")
    yield from layers(decoder, "transformer.blocks.{}.", block_rules)


FAMILIES = (Family("mpt", "MptForCausalLM", to_spec, to_config, rules, base="transformer."),)
