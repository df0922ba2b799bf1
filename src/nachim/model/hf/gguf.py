"""Decoders as GGUF files, which llama.cpp opens: names, layouts and metadata of its architectures.

What llama.cpp computes is not all said in the file: the kind of activation, which layers have windows and how scores
are scaled is partly its own. So each architecture says what it computes, and any other decoder is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSOR, TENSOR_NAMES, GGMLQuantizationType, GGUFWriter
from gguf import LlamaFileType as FileType
from gguf import RopeScalingType as Stretch
from gguf.quants import quantize
from torch import Tensor

from nachim.model.hf.checkpoint import theirs_of, untrained
from nachim.model.hf.rules import KEEP, Rule, Transform, cat, first, half_split, layers, module, rule
from nachim.spec import (
    FFN,
    MLP,
    Attention,
    Decoder,
    GeGLU,
    Interpolated,
    LayerNorm,
    Llama3Scaling,
    LongRoPE,
    MoE,
    RoPE,
    SwiGLU,
    UserError,
    YaRN,
)
from nachim.spec.model import Block

T = MODEL_TENSOR
Tensors = Mapping[str, Tensor]
F32 = GGMLQuantizationType.F32
TYPES = {
    torch.float32: (F32, FileType.ALL_F32),
    torch.float16: (GGMLQuantizationType.F16, FileType.MOSTLY_F16),
    torch.bfloat16: (GGMLQuantizationType.BF16, FileType.MOSTLY_BF16),
}
WHOLE = (TENSOR_NAMES[T.POS_EMBD], "ffn_gate_inp.")
"""Matrices that llama.cpp wants in fp32."""
LOCAL = RoPE(theta=10_000.0)
"""The positions of Gemma 3's local layers, which stand in llama.cpp and not in the file."""


@dataclass(frozen=True)
class Arch:
    """An architecture of llama.cpp: the rules of its tensors, and which options it computes."""

    arch: MODEL_ARCH
    rules: Callable[[Decoder], Iterator[Rule]]
    usual: Callable[[FFN], FFN | None]
    """The feed-forward that it computes where a decoder has a given one."""
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


def name_of(tensor: MODEL_TENSOR) -> str:
    """A tensor's name without its field, and without the prefix of a layer."""
    return TENSOR_NAMES[tensor].removeprefix("blk.{bid}.")


def outer(decoder: Decoder) -> Iterator[Rule]:
    """Embedding, last norm and head."""
    yield from module("embedding", name_of(T.TOKEN_EMBD))
    yield from module("norm", name_of(T.OUTPUT_NORM), bias=isinstance(decoder.norm, LayerNorm))
    yield from module("head", name_of(T.OUTPUT))


def separate(block: Block, order: Transform = KEEP) -> Iterator[Rule]:
    """Attention of separate projections, `order` that of the rows of queries and keys, and a gated feed-forward."""
    part = block.mixer
    rows = cat(part.n_heads, part.n_kv_heads, part.n_kv_heads)
    names = [name_of(tensor) for tensor in (T.ATTN_Q, T.ATTN_K, T.ATTN_V)]
    yield from module("attention.qkv", names, first(2, order).then(rows), bias=part.bias != "none")
    yield from module("attention.out", name_of(T.ATTN_OUT), bias=part.bias == "all")
    if part.qk_norm:
        yield from module("attention.q_norm", name_of(T.ATTN_Q_NORM))
        yield from module("attention.k_norm", name_of(T.ATTN_K_NORM))
    if isinstance(block.ffn, MoE):
        yield from module("ffn.router", name_of(T.FFN_GATE_INP))
        halves = [name_of(T.FFN_GATE_EXP), name_of(T.FFN_UP_EXP)]
        yield from module("ffn.experts.gate_up", halves, cat(1, 1, axis=1))
        yield from module("ffn.experts.down", name_of(T.FFN_DOWN_EXP))
        return
    yield from module("ffn.gate_up", [name_of(T.FFN_GATE), name_of(T.FFN_UP)], cat(1, 1), bias=block.ffn.bias)
    yield from module("ffn.down", name_of(T.FFN_DOWN), bias=block.ffn.bias)


def norms(decoder: Decoder) -> Iterator[Rule]:
    """The norms of a block, before and after its sublayers."""
    bias = isinstance(decoder.norm, LayerNorm)
    if decoder.residual.before:
        yield from module("attention_norm", name_of(T.ATTN_NORM), bias=bias)
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

    def block_rules(block: Block) -> Iterator[Rule]:
        part, up = block.mixer, "ffn.up" if isinstance(block.ffn, MLP) else "ffn.gate_up"
        yield from norms(decoder)
        yield from module("attention.qkv", name_of(T.ATTN_QKV), bias=part.bias != "none")
        yield from module("attention.out", name_of(T.ATTN_OUT), bias=part.bias == "all")
        yield from module(up, name_of(T.FFN_UP), bias=block.ffn.bias)
        yield from module("ffn.down", name_of(T.FFN_DOWN), bias=block.ffn.bias)

    yield from outer(decoder)
    if decoder.blocks[0].position.added:
        yield rule("position.table", f"{name_of(T.POS_EMBD)}.weight")
    yield from layers(decoder, "blk.{}.", block_rules)


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


STRETCHES = (Interpolated, YaRN, Llama3Scaling)
LLAMA = Arch(MODEL_ARCH.LLAMA, llama_rules, silu_or_biased, biases=("none", "all"), stretches=STRETCHES)
ARCHS = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": Arch(MODEL_ARCH.LLAMA, llama_rules, routed, stretches=STRETCHES),
    "qwen2": Arch(MODEL_ARCH.QWEN2, plain_rules, silu, biases=("qkv",)),
    "qwen3": Arch(MODEL_ARCH.QWEN3, plain_rules, silu),
    "qwen3_moe": Arch(MODEL_ARCH.QWEN3MOE, plain_rules, routed),
    "gemma2": Arch(MODEL_ARCH.GEMMA2, plain_rules, gelu, period=2, capped=True, plus_one=True),
    "gemma3_text": Arch(MODEL_ARCH.GEMMA3, plain_rules, gelu, period=6, plus_one=True),
    "olmo2": Arch(MODEL_ARCH.OLMO2, plain_rules, silu, square=True, head=True),
    "phi3": Arch(MODEL_ARCH.PHI3, fused_rules, silu, stretches=(LongRoPE,), partial=True, square=True),
    "gpt2": Arch(MODEL_ARCH.GPT2, fused_rules, wide_gelu, biases=("all",), square=True),
}
"""The architecture of each Hugging Face family that llama.cpp has and this writes."""


def arch_of(model_type: str, decoder: Decoder, context: int) -> Arch:
    """The architecture of a family. Raises UserError, naming the part, where llama.cpp does not compute `decoder`."""
    if model_type not in ARCHS:
        raise UserError(f"no GGUF file is written for {model_type} models; known: {', '.join(sorted(ARCHS))}")
    arch = ARCHS[model_type]
    if why := next(_unfit(arch, decoder, context), None):
        raise UserError(f"llama.cpp's {MODEL_ARCH_NAMES[arch.arch]} does not compute this decoder exactly: {why}")
    return arch


def _unfit(arch: Arch, decoder: Decoder, context: int) -> Iterator[str]:
    """What of a decoder the architecture does not compute."""
    for number, block in enumerate(decoder.blocks):
        yield from _unfit_block(arch, block, decoder)
        windowed = block.mixer.window is not None
        if arch.period is None and windowed and block.mixer.window < context:
            yield f"it has no window, here of {block.mixer.window} tokens"
        if arch.period is not None and windowed != bool((number + 1) % arch.period):
            yield f"layers with a window must be all but every {arch.period}th"
        if arch.arch is MODEL_ARCH.GEMMA3 and windowed and block.position != LOCAL:
            yield f"layers with a window turn by {LOCAL}, here by {block.position}"
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
    if isinstance(position, RoPE):
        if position.dim is not None and not arch.partial:
            yield f"RoPE.dim is {position.dim}"
        scaling = position.scaling
        usual = scaling is None or isinstance(scaling, arch.stretches)
        if isinstance(scaling, YaRN):
            usual = usual and scaling == YaRN(factor=scaling.factor, original=scaling.original)
        if not usual:
            yield f"RoPE.scaling is {scaling}"


def write_gguf(path: Path, arch: Arch, decoder: Decoder, source: Tensors, context: int, tokens: dict[str, Any]) -> None:
    """Write the tensors of `source`, which are ours, and the metadata of `decoder` to the GGUF file `path`.

    Matrices keep their precision, all else is fp32. `tokens` are methods of the writer about the tokenizer, with what
    they are given.
    """
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[arch.arch])
    found = dict(tensors(arch, decoder, source))
    dtypes = {tensor.dtype for name, tensor in found.items() if tensor.ndim > 1}
    if unknown := dtypes - set(TYPES):
        raise UserError(f"no GGUF file is written of weights in {min(map(str, unknown))}")
    facts = {"vocab_size": decoder.vocab_size, **shape_facts(decoder, context), **position_facts(decoder)}
    if len(dtypes) == 1:
        facts["file_type"] = TYPES[dtypes.pop()][1]
    for name, value in {**facts, **tokens}.items():
        getattr(writer, f"add_{name}")(value)
    for name, tensor in found.items():
        kind = F32 if tensor.ndim == 1 or any(kept in name for kept in WHOLE) else TYPES[tensor.dtype][0]
        data = tensor.detach().float().contiguous().numpy()
        writer.add_tensor(name, data if kind is F32 else quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rules_for(arch: Arch, decoder: Decoder) -> list[Rule]:
    """The rules of a decoder's tensors, without that of a head that is the embedding."""
    return [one for one in arch.rules(decoder) if not (decoder.tied and one.ours == ("head.weight",))]


def tensors(arch: Arch, decoder: Decoder, source: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the file under its name."""
    for one in rules_for(arch, decoder):
        for name, tensor in theirs_of(one, source).items():
            gain = arch.plus_one and name.endswith("norm.weight")
            yield name, tensor.float() + 1 if gain else tensor
    if decoder.tied and arch.head:
        yield f"{name_of(T.OUTPUT)}.weight", source["embedding.weight"]
    block = whole(decoder)
    if isinstance(block.position, RoPE):
        for kind, divisors in divisors_of(block.position, block.mixer.d_head).items():
            yield f"{name_of(kind)}.weight", torch.tensor(divisors, dtype=torch.float32)


def whole(decoder: Decoder) -> Block:
    """The first layer that sees everything, or the first of all: its positions are those that the file tells."""
    return next((block for block in decoder.blocks if block.mixer.window is None), decoder.blocks[0])


def divisors_of(position: RoPE, d_head: int) -> dict[MODEL_TENSOR, list[float]]:
    """What each pair's frequency is divided by, for the scalings that the file holds as tensors."""
    scaling, dim = position.scaling, position.turned(d_head)
    if isinstance(scaling, LongRoPE):
        return {T.ROPE_FACTORS_LONG: [*scaling.long], T.ROPE_FACTORS_SHORT: [*scaling.short]}
    if isinstance(scaling, Llama3Scaling):
        plain = [position.theta ** (-pair / dim) for pair in range(0, dim, 2)]
        slower = scaling.stretched(plain, position.theta, scaling.original)
        return {T.ROPE_FREQS: [fast / slow for fast, slow in zip(plain, slower, strict=True)]}
    return {}


def shape_facts(decoder: Decoder, context: int) -> dict[str, Any]:
    """The metadata of a shape, by what the writer calls it."""
    block = decoder.blocks[0]
    part: Attention = block.mixer
    eps = "layer_norm_eps" if isinstance(decoder.norm, LayerNorm) else "layer_norm_rms_eps"
    facts = {
        "context_length": context,
        "embedding_length": decoder.d_model,
        "block_count": decoder.n_layers,
        "feed_forward_length": block.ffn.d_ff,
        "head_count": part.n_heads,
        "head_count_kv": part.n_kv_heads,
        "key_length": part.d_head,
        "value_length": part.d_head,
        eps: decoder.norm.eps,
        "sliding_window": next((each.mixer.window for each in decoder.blocks if each.mixer.window), None),
        **(expert_facts(block.ffn) if isinstance(block.ffn, MoE) else {}),
        "attn_logit_softcapping": part.softcap,
        "final_logit_softcapping": decoder.logit_cap,
    }
    return {name: value for name, value in facts.items() if value is not None}


def expert_facts(part: MoE) -> dict[str, Any]:
    """The metadata of experts."""
    return {
        "expert_count": part.experts,
        "expert_used_count": part.active,
        "expert_feed_forward_length": part.d_ff,
    }


def position_facts(decoder: Decoder) -> dict[str, Any]:
    """The metadata of rotary positions."""
    block = whole(decoder)
    position = block.position
    if not isinstance(position, RoPE):
        return {}
    facts = {"rope_freq_base": position.theta, "rope_dimension_count": position.turned(block.mixer.d_head)}
    match position.scaling:
        case Interpolated(factor=factor):
            return {**facts, "rope_scaling_type": Stretch.LINEAR, "rope_scaling_factor": factor}
        case YaRN(factor=factor, original=original):
            told = {"rope_scaling_factor": factor, "rope_scaling_orig_ctx_len": original}
            return {**facts, "rope_scaling_type": Stretch.YARN, **told}
        case LongRoPE(original=original) as longrope:
            told = {"rope_scaling_attn_factors": longrope.magnitude, "rope_scaling_orig_ctx_len": original}
            return {**facts, **told}
    return facts
