"""Falcon: attention and feed-forward side by side, one key for many queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import read_mlp, write_mlp
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rope import read_rope, write_rope
from nachim.model.hf.rules import Rule, interleaved, layers, module
from nachim.spec import ALiBi, Attention, Decoder, LayerNorm, Parallel, PreNorm, Residual
from nachim.spec.model import Block

NEW = "new_decoder_architecture"


def to_spec(config: Config) -> Decoder:
    """The decoder of a Falcon config: the first architecture's (7B, RW) or the new one's (40B, 180B, 11B)."""
    config.without_effect("ff_factor", "hidden_dropout", "max_position_embeddings")
    config.only("apply_residual_connection_post_layernorm", False)
    width = config.either("n_embed", "hidden_size")
    heads = config.either("n_head", "num_attention_heads")
    bias, d_head = config.get("bias", False), width // heads
    d_ff = config.get("ffn_hidden_size", 4 * width)
    return Decoder(
        vocab_size=config.need("vocab_size"),
        d_model=width,
        n_layers=config.either("n_layer", "num_hidden_layers"),
        tied=config.get("tie_word_embeddings", True),
        attention=Attention(
            n_heads=heads, n_kv_heads=key_heads(config, heads), d_head=d_head, bias="all" if bias else "none"
        ),
        ffn=read_mlp(config, d_ff, "activation", "gelu", bias=bias),
        norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
        position=alibi(d_head) if config.get("alibi", False) else read_rope(config, d_head),
        residual=residual(config),
    )


def key_heads(config: Config, heads: int) -> int:
    """Heads of keys: the new architecture groups queries, the first has one key, or one for each query."""
    many, shared = config.get("num_kv_heads", heads), config.get("multi_query", True)
    if config.get(NEW, False):
        return many
    return 1 if shared else heads


def residual(config: Config) -> Residual:
    """How its sublayers meet the stream: one after the other, or side by side with one norm or two."""
    new, parallel = config.get(NEW, False), config.get("parallel_attn", True)
    norms = config.get("num_ln_in_parallel_attn", 2 if new else 1)
    if new and not parallel:
        config.refuse("parallel_attn", parallel, f"with {NEW} both sublayers read the same stream")
    if norms not in ((1, 2) if new else (1,)):
        config.refuse("num_ln_in_parallel_attn", norms, f"it is 1, or with {NEW} 1 or 2")
    return Parallel(shared=norms == 1) if parallel else PreNorm()


def alibi(d_head: int) -> ALiBi:
    """Falcon's ALiBi: computed in bfloat16, and added to q.k before that is divided by sqrt(d_head)."""
    return ALiBi(factor=d_head**-0.5, rounded=True)


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Falcon config nearest to a decoder: in the first architecture where that is able to."""
    block, scheme = decoder.blocks[0], decoder.residual
    part, alibi = block.mixer, isinstance(block.position, ALiBi)
    side_by_side = isinstance(scheme, Parallel)
    new = side_by_side and (not scheme.shared or 1 < part.n_kv_heads < part.n_heads)
    return {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.d_model,
        "num_hidden_layers": decoder.n_layers,
        "num_attention_heads": part.n_heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": decoder.tied,
        NEW: new,
        **({"num_kv_heads": part.n_kv_heads} if new else {"multi_query": part.n_kv_heads == 1}),
        **({"num_ln_in_parallel_attn": 2 - scheme.shared} if new else {"parallel_attn": side_by_side}),
        "ffn_hidden_size": block.ffn.d_ff,
        "activation": write_mlp(block.ffn),
        "bias": block.ffn.bias,
        "layer_norm_epsilon": decoder.norm.eps,
        "alibi": alibi,
        **({} if alibi else write_rope(block.position, part.d_head)),
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a Falcon checkpoint."""
    scheme = decoder.residual
    two = isinstance(scheme, Parallel) and not scheme.shared

    def block_rules(block: Block) -> Iterator[Rule]:
        part, bias = block.mixer, block.ffn.bias
        yield from module("attention_norm", "ln_attn" if two else "input_layernorm", bias=True)
        heads = interleaved((part.n_heads // part.n_kv_heads, 1, 1), part.d_head)
        yield from module("attention.qkv", "self_attention.query_key_value", heads, bias=bias)
        yield from module("attention.out", "self_attention.dense", bias=bias)
        if two or isinstance(scheme, PreNorm):
            yield from module("ffn_norm", "ln_mlp" if two else "post_attention_layernorm", bias=True)
        yield from module("ffn.up", "mlp.dense_h_to_4h", bias=bias)
        yield from module("ffn.down", "mlp.dense_4h_to_h", bias=bias)

    yield from module("embedding", "transformer.word_embeddings")
    yield from module("norm", "transformer.ln_f", bias=True)
    yield from module("head", "lm_head")
    yield from layers(decoder, "transformer.h.{}.", block_rules)


FAMILIES = (Family("falcon", "FalconForCausalLM", to_spec, to_config, rules, base="transformer."),)
