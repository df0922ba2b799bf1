"""GPT-2: a table of positions, matrices stored [in, out]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import over_layers, read_mlp, write_mlp
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rules import TURN, Rule, layers, module, rule
from nachim.spec import Attention, Decoder, LayerNorm, Learned, Pattern
from nachim.spec.model import Block

IGNORED = (r".*\.attn\.(bias|masked_bias)",)
"""Masks that older checkpoints hold."""


def to_spec(config: Config) -> Decoder:
    """The decoder of a GPT-2 config, which may name its shape in two ways."""
    config.without_effect("attn_pdrop", "embd_pdrop", "n_ctx", "reorder_and_upcast_attn", "resid_pdrop")
    config.without_effect("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type")
    config.without_effect("summary_use_proj", "task_specific_params")
    config.only("add_cross_attention", False)
    width = config.either("n_embd", "hidden_size")
    n_layers = config.either("n_layer", "num_hidden_layers")
    return Decoder(
        vocab_size=config.need("vocab_size"),
        d_model=width,
        n_layers=n_layers,
        tied=config.get("tie_word_embeddings", True),
        attention=attention(config, width, n_layers),
        ffn=read_mlp(config, config.get("n_inner") or 4 * width, "activation_function", "gelu_new", bias=True),
        norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
        position=Learned(length=config.either("n_positions", "max_position_embeddings")),
    )


def attention(config: Config, width: int, n_layers: int) -> Attention | Pattern:
    """The attention of all layers; a config may leave scores unscaled, and divide those of layer n, from 1, by n."""
    heads = config.either("n_head", "num_attention_heads")
    usual = (width // heads) ** -0.5
    first = usual if config.get("scale_attn_weights", True) else 1.0
    falling = config.get("scale_attn_by_inverse_layer_idx", False)

    def layer(scale: float) -> Attention:
        written = None if scale == usual else scale
        return Attention(n_heads=heads, n_kv_heads=heads, d_head=width // heads, bias="all", scale=written)

    return over_layers([layer(first / (n if falling else 1)) for n in range(1, n_layers + 1)])


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The GPT-2 config nearest to a decoder; the context is that of its table."""
    block, last = decoder.blocks[0], decoder.blocks[-1]
    return {
        "vocab_size": decoder.vocab_size,
        "n_embd": decoder.d_model,
        "n_layer": decoder.n_layers,
        "n_head": block.mixer.n_heads,
        "n_positions": block.position.length,
        "n_inner": block.ffn.d_ff,
        "activation_function": write_mlp(block.ffn),
        "layer_norm_epsilon": decoder.norm.eps,
        "tie_word_embeddings": decoder.tied,
        "scale_attn_weights": block.mixer.scale is None,
        "scale_attn_by_inverse_layer_idx": last.mixer.scale != block.mixer.scale,
    }


def turned(ours: str, theirs: str) -> Iterator[Rule]:
    """Weight and bias of a linear layer whose weight is stored [in, out]."""
    yield rule(f"{ours}.weight", f"{theirs}.weight", TURN)
    yield rule(f"{ours}.bias", f"{theirs}.bias")


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a GPT-2 checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "ln_1", bias=True)
        yield from turned("attention.qkv", "attn.c_attn")
        yield from turned("attention.out", "attn.c_proj")
        yield from module("ffn_norm", "ln_2", bias=True)
        yield from turned("ffn.up", "mlp.c_fc")
        yield from turned("ffn.down", "mlp.c_proj")

    yield from module("embedding", "transformer.wte")
    yield rule("position.table", "transformer.wpe.weight")
    yield from module("norm", "transformer.ln_f", bias=True)
    yield from module("head", "lm_head")
    yield from layers(decoder, "transformer.h.{}.", block_rules)


FAMILIES = (Family("gpt2", "GPT2LMHeadModel", to_spec, to_config, rules, base="transformer.", ignored=IGNORED),)
