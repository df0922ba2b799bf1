"""llama.cpp's architectures: the names and layouts of their tensors, and what they compute.

What llama.cpp computes is not all said in a GGUF file: the kind of activation, which layers have windows and how scores
are scaled is partly its own. So each architecture says what it computes, and any other decoder is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, MODEL_TENSOR, TENSOR_NAMES

from nachim.model.hf.checkpoint import untrained
from nachim.model.hf.rules import KEEP, Rule, Transform, cat, first, half_split, layers, module, rule, shaped
from nachim.spec import (
    FFN,
    MLP,
    ALiBi,
    Decoder,
    GeGLU,
    Interpolated,
    LayerNorm,
    Learned,
    Llama3Scaling,
    LongRoPE,
    MoE,
    NoPosition,
    Parallel,
    RoPE,
    SwiGLU,
    YaRN,
)
from nachim.spec.model import Block

T = MODEL_TENSOR
LOCAL = RoPE(theta=10_000.0)
"""The positions of Gemma 3's local layers, which stand in llama.cpp and not in the file."""


@dataclass(frozen=True)
class Arch:
    """An architecture of llama.cpp: the rules of its tensors, and which options it computes."""

    arch: MODEL_ARCH
    rules: Callable[[Decoder], Iterator[Rule]]
    usual: Callable[[FFN], FFN | None] | None = None
    """The feed-forward that it computes where a decoder has a given one."""
    facts: Callable[[Decoder, int], dict[str, Any]] | None = None
    """The metadata of a decoder for a context, where it is not that of a decoder whose layers all attend."""
    unfit: Callable[[Arch, Decoder, int], Iterator[str]] | None = None
    """What of a decoder it does not compute, where that is not what the options below say."""
    biases: tuple[str, ...] = ("none",)
    stretches: tuple[type, ...] = (Interpolated, YaRN)
    partial: bool = False
    """Whether a part of each head may turn."""
    square: bool = False
    """Whether heads must be as wide together as the stream."""
    period: int | None = None
    """Every which layer sees everything where the others have a window; None where windows are not computed."""
    capped: bool = False
    """Whether scores and logits are bounded, always."""
    plus_one: bool = False
    """Whether gains are stored as they are, where here their distance from 1 is (Gemma)."""
    head: bool = False
    """Whether the head is stored although it is the embedding."""
    tied: bool = False
    """Whether the head must be the embedding."""
    unplaced: int | None = None
    """Every which layer knows no positions; None where all do."""


def name_of(tensor: MODEL_TENSOR) -> str:
    """A tensor's name without its field, and without the prefix of a layer."""
    return TENSOR_NAMES[tensor].removeprefix("blk.{bid}.")


def outer(decoder: Decoder) -> Iterator[Rule]:
    """Embedding and what stands beside it, last norm and head."""
    bias = isinstance(decoder.norm, LayerNorm) and decoder.norm.bias
    yield from module("embedding", name_of(T.TOKEN_EMBD))
    if decoder.embedding_norm:
        yield from module("embedding_norm", name_of(T.TOKEN_EMBD_NORM), bias=bias)
    if isinstance(decoder.blocks[0].position, Learned):
        yield rule("position.table", f"{name_of(T.POS_EMBD)}.weight")
    yield from module("norm", name_of(T.OUTPUT_NORM), bias=bias)
    yield from module("head", name_of(T.OUTPUT))


def separate(block: Block, order: Transform = KEEP) -> Iterator[Rule]:
    """Attention of separate projections, `order` that of the rows of queries and keys."""
    part = block.mixer
    rows = cat(part.n_heads, part.n_kv_heads, part.n_kv_heads)
    names = [name_of(tensor) for tensor in (T.ATTN_Q, T.ATTN_K, T.ATTN_V)]
    yield from module("attention.qkv", names, first(2, order).then(rows), bias=part.bias != "none")
    yield from module("attention.out", name_of(T.ATTN_OUT), bias=part.bias == "all")
    if part.qk_norm:
        yield from module("attention.q_norm", name_of(T.ATTN_Q_NORM))
        yield from module("attention.k_norm", name_of(T.ATTN_K_NORM))
    yield from forward(block.ffn)


def forward(ffn: FFN) -> Iterator[Rule]:
    """A feed-forward: plain, gated with its halves apart, or of experts."""
    if isinstance(ffn, MoE):
        yield from experts(ffn)
        return
    halves = [name_of(T.FFN_GATE), name_of(T.FFN_UP)]
    if isinstance(ffn, MLP):
        yield from module("ffn.up", name_of(T.FFN_UP), bias=ffn.bias)
    else:
        yield from module("ffn.gate_up", halves, cat(1, 1), bias=ffn.bias)
    yield from module("ffn.down", name_of(T.FFN_DOWN), bias=ffn.bias)


def experts(ffn: MoE) -> Iterator[Rule]:
    """Router, experts as stacks, and the experts that serve every token."""
    yield from module("ffn.router", name_of(T.FFN_GATE_INP))
    halves = [name_of(T.FFN_GATE_EXP), name_of(T.FFN_UP_EXP)]
    yield from module("ffn.experts.gate_up", halves, cat(1, 1, axis=1))
    yield from module("ffn.experts.down", name_of(T.FFN_DOWN_EXP))
    if ffn.shared:
        halves = [name_of(T.FFN_GATE_SHEXP), name_of(T.FFN_UP_SHEXP)]
        yield from module("ffn.shared.gate_up", halves, cat(1, 1))
        yield from module("ffn.shared.down", name_of(T.FFN_DOWN_SHEXP))
    if ffn.shared_gate:
        yield from module("ffn.shared_gate", name_of(T.FFN_GATE_INP_SHEXP), shaped((-1,), (1, -1)))


def norms(decoder: Decoder) -> Iterator[Rule]:
    """The norms of a block, before and after its sublayers."""
    bias = isinstance(decoder.norm, LayerNorm) and decoder.norm.bias
    if decoder.residual.before:
        yield from module("attention_norm", name_of(T.ATTN_NORM), bias=bias)
        if not (isinstance(decoder.residual, Parallel) and decoder.residual.shared):
            yield from module("ffn_norm", name_of(T.FFN_NORM), bias=bias)
    if decoder.residual.after:
        yield from module("attention_output_norm", name_of(T.ATTN_POST_NORM), bias=bias)
        yield from module("ffn_output_norm", name_of(T.FFN_POST_NORM), bias=bias)


def plain_rules(decoder: Decoder) -> Iterator[Rule]:
    """Everything separate, rows as here."""
    yield from outer(decoder)
    yield from layers(decoder, "blk.{}.", lambda block: (*norms(decoder), *separate(block)))


def llama_rules(decoder: Decoder) -> Iterator[Rule]:
    """Everything separate; rows of queries and keys stand in interleaved pairs."""
    yield from outer(decoder)
    yield from layers(
        decoder, "blk.{}.", lambda block: (*norms(decoder), *separate(block, half_split(block.mixer.d_head)))
    )


def fused_rules(decoder: Decoder) -> Iterator[Rule]:
    """Queries, keys and values in one matrix, and a feed-forward of two."""

    yield from outer(decoder)
    yield from layers(decoder, "blk.{}.", lambda block: (*norms(decoder), *fused(block)))


def fused(block: Block) -> Iterator[Rule]:
    """The matrices of a block: one for queries, keys and values, one to leave attention, two of the feed-forward."""
    part, up = block.mixer, "ffn.up" if isinstance(block.ffn, MLP) else "ffn.gate_up"
    yield from module("attention.qkv", name_of(T.ATTN_QKV), bias=part.bias != "none")
    yield from module("attention.out", name_of(T.ATTN_OUT), bias=part.bias == "all")
    yield from module(up, name_of(T.FFN_UP), bias=block.ffn.bias)
    yield from module("ffn.down", name_of(T.FFN_DOWN), bias=block.ffn.bias)


def silu(ffn: FFN) -> FFN:
    """Gated by SiLU."""
    return SwiGLU(d_ff=ffn.d_ff)


def silu_or_biased(ffn: FFN) -> FFN:
    """Gated by SiLU, with biases or without."""
    return SwiGLU(d_ff=ffn.d_ff, bias=getattr(ffn, "bias", False))


def gelu(ffn: FFN) -> FFN:
    """Gated by GELU's approximation."""
    return GeGLU(d_ff=ffn.d_ff)


def wide_gelu(ffn: FFN) -> FFN:
    """GELU's approximation without a gate."""
    return MLP(d_ff=ffn.d_ff, activation="gelu_tanh", bias=True)


def routed(ffn: FFN) -> FFN | None:
    """SwiGLU experts whose gates add up to 1."""
    if not isinstance(ffn, MoE):
        return None
    return MoE(d_ff=ffn.d_ff, experts=ffn.experts, active=ffn.active, renormalise=True)


def routed_and_shared(ffn: FFN) -> FFN | None:
    """SwiGLU experts whose gates are softmax scores as they are, and shared ones with a gate."""
    if not isinstance(ffn, MoE):
        return None
    shape = {"d_ff": ffn.d_ff, "experts": ffn.experts, "active": ffn.active, "shared": ffn.shared}
    return MoE(**shape, shared_gate=True, renormalise=False)


STRETCHES = (Interpolated, YaRN, Llama3Scaling)
LLAMA = Arch(MODEL_ARCH.LLAMA, llama_rules, silu_or_biased, biases=("none", "all"), stretches=STRETCHES)
ARCHS = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": Arch(MODEL_ARCH.LLAMA, llama_rules, routed, stretches=STRETCHES),
    "qwen2": Arch(MODEL_ARCH.QWEN2, plain_rules, silu, biases=("qkv",)),
    "qwen3": Arch(MODEL_ARCH.QWEN3, plain_rules, silu),
    "qwen3_moe": Arch(MODEL_ARCH.QWEN3MOE, plain_rules, routed),
    "gemma2": Arch(MODEL_ARCH.GEMMA2, plain_rules, gelu, period=2, capped=True, plus_one=True, tied=True),
    "gemma3_text": Arch(MODEL_ARCH.GEMMA3, plain_rules, gelu, period=6, plus_one=True),
    "olmo2": Arch(MODEL_ARCH.OLMO2, plain_rules, silu, square=True, head=True),
    "phi3": Arch(MODEL_ARCH.PHI3, fused_rules, silu, stretches=(LongRoPE,), partial=True, square=True),
    "smollm3": Arch(MODEL_ARCH.SMOLLM3, llama_rules, silu, unplaced=4),
    "qwen2_moe": Arch(MODEL_ARCH.QWEN2MOE, plain_rules, routed_and_shared, biases=("qkv",), square=True, head=True),
    "starcoder2": Arch(MODEL_ARCH.STARCODER2, plain_rules, wide_gelu, biases=("all",), square=True),
    "stablelm": Arch(
        MODEL_ARCH.STABLELM, plain_rules, silu, biases=("none", "qkv"), partial=True, square=True, head=True
    ),
    "cohere": Arch(MODEL_ARCH.COMMAND_R, llama_rules, silu, tied=True),
    "bloom": Arch(MODEL_ARCH.BLOOM, fused_rules, wide_gelu, biases=("all",), square=True),
    "gpt2": Arch(MODEL_ARCH.GPT2, fused_rules, wide_gelu, biases=("all",), square=True),
}
"""The architecture of each Hugging Face family whose layers all attend."""


def attention_unfit(arch: Arch, decoder: Decoder, context: int) -> Iterator[str]:
    """What of a decoder whose layers all attend the architecture does not compute."""
    for number, block in enumerate(decoder.blocks):
        yield from _unfit_block(arch, block, decoder)
        windowed = block.mixer.window is not None
        if arch.period is None and windowed and block.mixer.window < context:
            yield f"it has no window, here of {block.mixer.window} tokens"
        if arch.period is not None and windowed != bool((number + 1) % arch.period):
            yield f"layers with a window must be all but every {arch.period}th"
        if isinstance(block.position, NoPosition) != (arch.unplaced is not None and (number + 1) % arch.unplaced == 0):
            yield f"layer {number} has the positions {block.position}"
        if arch.arch is MODEL_ARCH.GEMMA3 and windowed and block.position != LOCAL:
            yield f"layers with a window turn by {LOCAL}, here by {block.position}"
    if arch.tied and not decoder.tied:
        yield "the head is not the embedding"
    if (decoder.logit_cap is not None) != arch.capped:
        yield f"logit_cap is {decoder.logit_cap}"


def _unfit_block(arch: Arch, block: Block, decoder: Decoder) -> Iterator[str]:
    part, ffn, position = block.mixer, block.ffn, block.position
    if (untrained(ffn) if isinstance(ffn, MoE) else ffn) != arch.usual(ffn):
        yield f"the feed-forward is {ffn}"
    if part.bias not in arch.biases:
        yield f"attention.bias is {part.bias!r}"
    if (part.softcap is not None) != arch.capped:
        yield f"attention.softcap is {part.softcap}"
    if part.factor != part.d_head**-0.5:
        yield f"attention.scale is {part.scale}"
    if arch.square and part.n_heads * part.d_head != decoder.d_model:
        yield f"{part.n_heads} heads of {part.d_head} are not d_model={decoder.d_model}"
    if part.qk_norm and part.qk_norm_eps != decoder.norm.eps:
        yield f"attention.qk_norm_eps is {part.qk_norm_eps}"
    if isinstance(position, ALiBi) and position != ALiBi():
        yield f"the position is {position}"
    if isinstance(position, RoPE):
        if position.dim is not None and not arch.partial:
            yield f"RoPE.dim is {position.dim}"
        scaling = position.scaling
        usual = scaling is None or isinstance(scaling, arch.stretches)
        if isinstance(scaling, YaRN):
            usual = usual and scaling == YaRN(factor=scaling.factor, original=scaling.original)
        if not usual:
            yield f"RoPE.scaling is {scaling}"


def rules_for(arch: Arch, decoder: Decoder) -> list[Rule]:
    """The rules of a decoder's tensors, without that of a head that is the embedding."""
    return [one for one in arch.rules(decoder) if not (decoder.tied and one.ours == ("head.weight",))]
