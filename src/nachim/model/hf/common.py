"""What many families write alike: the names of shapes, activations, windows, projections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nachim.model.hf.config import Config
from nachim.model.hf.rules import STACK, Rule, cat, groups, module, rule
from nachim.spec import MLP, Attention, Decoder, Gated, GeGLU, MoE, Part, Pattern, SwiGLU
from nachim.spec.model import Block

SLIDING, FULL = "sliding_attention", "full_attention"
GATED = {
    "silu": SwiGLU(d_ff=1),
    "swish": SwiGLU(d_ff=1),
    "gelu_pytorch_tanh": GeGLU(d_ff=1),
    "gelu_new": GeGLU(d_ff=1),
    "gelu": GeGLU(d_ff=1, exact=True),
}
PLAIN = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Names of activations, the first of those that mean one thing is written."""


def read_heads(config: Config, kv_heads: int | None = None, d_head: int | None = None) -> dict[str, int]:
    """Number and width of heads, as most families write them; `kv_heads` and `d_head` are the family's defaults.

    Where these are None, or null in the config, keys have as many heads as queries, which fill the width together.
    """
    heads, width = config.need("num_attention_heads"), config.need("hidden_size")
    grouped, wide = config.given("num_key_value_heads", kv_heads), config.given("head_dim", d_head)
    return {
        "n_heads": heads,
        "n_kv_heads": heads if grouped is None else grouped,
        "d_head": width // heads if wide is None else wide,
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


def read_gated(config: Config, d_ff: int, key: str = "hidden_act", default: str = "silu", bias: bool = False) -> Gated:
    """The gated feed-forward of the activation that `key` names, `default` where it is absent."""
    kind = GATED[config.only(key, default, *GATED)]
    shape = {"d_ff": d_ff, "bias": bias}
    return GeGLU(exact=kind.exact, **shape) if isinstance(kind, GeGLU) else SwiGLU(**shape)


def write_gated(part: Gated) -> str:
    """The activation's name."""
    if isinstance(part, GeGLU):
        return "gelu" if part.exact else "gelu_pytorch_tanh"
    return "silu"


def read_mlp(config: Config, d_ff: int, key: str, default: str, bias: bool) -> MLP:
    """The plain feed-forward of the activation that `key` names."""
    named = config.only(key, default, *PLAIN)
    return MLP(d_ff=d_ff, activation=PLAIN[named], bias=bias)


def write_mlp(part: MLP) -> str:
    """The activation's name."""
    return next(name for name, ours in PLAIN.items() if ours == part.activation)


def over_layers(parts: list[Part]) -> Part | Pattern:
    """One part where all layers have the same, else a pattern that names each."""
    return parts[0] if all(part == parts[0] for part in parts) else Pattern(parts=tuple(parts))


def layer_types(decoder: Decoder) -> list[str]:
    """Whether each layer sees a window or all, as a config names it."""
    return [FULL if block.mixer.window is None else SLIDING for block in decoder.blocks]


def window_of(decoder: Decoder) -> int | None:
    """The window of the first layer that has one; None where all see everything."""
    return next((block.mixer.window for block in decoder.blocks if block.mixer.window is not None), None)


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


def gated_rules(ours: str = "ffn", theirs: str = "mlp", bias: bool = False) -> Iterator[Rule]:
    """A gated feed-forward of three matrices."""
    yield from module(f"{ours}.gate_up", (f"{theirs}.gate_proj", f"{theirs}.up_proj"), cat(1, 1), bias=bias)
    yield from module(f"{ours}.down", f"{theirs}.down_proj", bias=bias)


def expert_rules(
    part: MoE, theirs: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> Iterator[Rule]:
    """Experts of three matrices each."""
    names = [f"{theirs}.{number}." for number in range(part.experts)]
    both = [f"{name}{half}.weight" for name in names for half in (gate, up)]
    yield rule("ffn.experts.gate_up.weight", both, groups(2, cat(1, 1)).then(STACK))
    yield rule("ffn.experts.down.weight", [f"{name}{down}.weight" for name in names], STACK)


def outer_rules() -> Iterator[Rule]:
    """Embedding, last norm and head."""
    yield from module("embedding", "model.embed_tokens")
    yield from module("norm", "model.norm")
    yield from module("head", "lm_head")
