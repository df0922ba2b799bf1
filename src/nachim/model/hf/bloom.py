"""BLOOM: ALiBi, a norm of the embedding, queries, keys and values interleaved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rules import Rule, interleaved, layers, module
from nachim.spec import MLP, ALiBi, Attention, Decoder, LayerNorm
from nachim.spec.model import Block

GROWTH = 4
"""Width of the feed-forward over that of the model."""


def to_spec(config: Config) -> Decoder:
    """The decoder of a BLOOM config, which may name its shape in two ways."""
    config.without_effect("attention_softmax_in_fp32", "bias_dropout_fusion", "hidden_dropout", "masked_softmax_fusion")
    config.without_effect("offset_alibi", "seq_length", "skip_bias_add", "skip_bias_add_qkv", "slow_but_exact")
    config.without_effect("unk_token_id")
    config.only("apply_residual_connection_post_layernorm", False)
    width = config.either("n_embed", "hidden_size")
    heads = config.either("n_head", "num_attention_heads")
    config.only("n_inner", None, GROWTH * width)
    return Decoder(
        vocab_size=config.need("vocab_size"),
        d_model=width,
        n_layers=config.either("n_layer", "num_hidden_layers"),
        tied=config.get("tie_word_embeddings", True),
        attention=Attention(n_heads=heads, n_kv_heads=heads, d_head=width // heads, bias="all"),
        ffn=MLP(d_ff=GROWTH * width, activation="gelu_tanh", bias=True),
        norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
        position=ALiBi(),
        embedding_norm=True,
    )


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The BLOOM config nearest to a decoder."""
    return {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.d_model,
        "n_layer": decoder.n_layers,
        "n_head": decoder.blocks[0].mixer.n_heads,
        "seq_length": context,
        "tie_word_embeddings": decoder.tied,
        "layer_norm_epsilon": decoder.norm.eps,
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a BLOOM checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "input_layernorm", bias=True)
        heads = interleaved((1, 1, 1), block.mixer.d_head)
        yield from module("attention.qkv", "self_attention.query_key_value", heads, bias=True)
        yield from module("attention.out", "self_attention.dense", bias=True)
        yield from module("ffn_norm", "post_attention_layernorm", bias=True)
        yield from module("ffn.up", "mlp.dense_h_to_4h", bias=True)
        yield from module("ffn.down", "mlp.dense_4h_to_h", bias=True)

    yield from module("embedding", "transformer.word_embeddings")
    yield from module("embedding_norm", "transformer.word_embeddings_layernorm", bias=True)
    yield from module("norm", "transformer.ln_f", bias=True)
    yield from module("head", "lm_head")
    yield from layers(decoder, "transformer.h.{}.", block_rules)


FAMILIES = (Family("bloom", "BloomForCausalLM", to_spec, to_config, rules, base="transformer."),)
