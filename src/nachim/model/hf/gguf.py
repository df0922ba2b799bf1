"""Decoders as GGUF files, which llama.cpp opens: tensors and metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import MODEL_ARCH_NAMES, MODEL_TENSOR, TENSOR_NAMES, GGMLQuantizationType, GGUFWriter
from gguf import LlamaFileType as FileType
from gguf import RopeScalingType as Stretch
from gguf.quants import quantize
from torch import Tensor

from nachim.model.hf.checkpoint import theirs_of
from nachim.model.hf.gguf_archs import Arch, name_of, rules_for
from nachim.model.hf.gguf_blocks import FILES, Low, blocks
from nachim.spec import Attention, Decoder, Interpolated, LayerNorm, Llama3Scaling, LongRoPE, MoE, RoPE, UserError, YaRN
from nachim.spec.model import Block

T = MODEL_TENSOR
F32 = GGMLQuantizationType.F32
Tensors = Mapping[str, Tensor]
TYPES = {
    torch.float32: (F32, FileType.ALL_F32),
    torch.float16: (GGMLQuantizationType.F16, FileType.MOSTLY_F16),
    torch.bfloat16: (GGMLQuantizationType.BF16, FileType.MOSTLY_BF16),
}
WHOLE = (TENSOR_NAMES[T.POS_EMBD], "ffn_gate_inp.", "ssm_conv1d.", "ssm_norm.")
"""Matrices that llama.cpp wants in fp32."""


def write_gguf(
    path: Path,
    arch: Arch,
    decoder: Decoder,
    source: Tensors,
    context: int,
    tokens: dict[str, Any],
    low: Low | None = None,
) -> None:
    """Write the tensors of `source`, which are ours, and the metadata of `decoder` to the GGUF file `path`.

    Matrices keep their precision, those of `low` their codes, all else is fp32. `tokens` are methods of the writer
    about the tokenizer, with what they are given.
    """
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[arch.arch])
    found = dict(tensors(arch, decoder, source))
    coded = {} if low is None else coded_in(low, arch, decoder, found)
    dtypes = {tensor.dtype for name, tensor in found.items() if is_weight(name, tensor) and name not in coded}
    if unknown := dtypes - set(TYPES):
        raise UserError(f"no GGUF file is written of weights in {min(map(str, unknown))}")
    facts = {"vocab_size": decoder.vocab_size, **(arch.facts or attention_facts)(decoder, context)}
    if low is not None:
        facts["file_type"] = FILES[low.kind]
    elif len(dtypes) == 1:
        facts["file_type"] = TYPES[dtypes.pop()][1]
    for name, value in {**facts, **tokens}.items():
        getattr(writer, f"add_{name}")(value)
    for name, tensor in found.items():
        if low is not None and name in coded:
            writer.add_tensor(name, coded[name], raw_dtype=low.kind)
            continue
        kind = TYPES[tensor.dtype][0] if is_weight(name, tensor) else F32
        data = tensor.detach().float().contiguous().numpy()
        writer.add_tensor(name, data if kind is F32 else quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def is_weight(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of the file is a matrix that may have another precision than fp32."""
    return tensor.ndim > 1 and name.endswith(".weight") and not any(kept in name for kept in WHOLE)


def coded_in(low: Low, arch: Arch, decoder: Decoder, values: Tensors) -> dict[str, npt.NDArray[np.uint8]]:
    """The blocks of the file's tensors that are made of quantised matrices alone."""
    lows = dict(tensors(arch, decoder, low.lows))
    return {
        name: blocks(name, low.kind, values[name], scale, lows[name])
        for name, scale in tensors(arch, decoder, low.scales)
        if scale.ndim > 1 and not scale.isnan().any()
    }


def tensors(arch: Arch, decoder: Decoder, source: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the file under its name."""
    for one in rules_for(arch, decoder):
        for name, tensor in theirs_of(one, source).items():
            gain = arch.plus_one and name.endswith("norm.weight")
            yield name, tensor.float() + 1 if gain else tensor
    if decoder.tied and arch.head:
        yield f"{name_of(T.OUTPUT)}.weight", source["embedding.weight"]
    block = whole(decoder)
    if isinstance(block.mixer, Attention) and isinstance(block.position, RoPE):
        for kind, divisors in divisors_of(block.position, block.mixer.d_head).items():
            yield f"{name_of(kind)}.weight", torch.tensor(divisors, dtype=torch.float32)


def whole(decoder: Decoder) -> Block:
    """The first layer that sees everything, or the first of all: its positions are those that the file tells."""
    return next((block for block in decoder.blocks if getattr(block.mixer, "window", None) is None), decoder.blocks[0])


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


def attention_facts(decoder: Decoder, context: int) -> dict[str, Any]:
    """The metadata of a decoder whose layers all attend."""
    return {**shape_facts(decoder, context), **position_facts(decoder)}


def shape_facts(decoder: Decoder, context: int) -> dict[str, Any]:
    """The metadata of a shape, by what the writer calls it."""
    block = decoder.blocks[0]
    part = block.mixer
    scale = None if decoder.logit_scale == 1 else decoder.logit_scale
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
        "logit_scale": scale,
    }
    return {name: value for name, value in facts.items() if value is not None}


def expert_facts(part: MoE) -> dict[str, Any]:
    """The metadata of experts."""
    return {
        "expert_count": part.experts,
        "expert_used_count": part.active,
        "expert_feed_forward_length": part.d_ff,
        "expert_shared_feed_forward_length": part.shared * part.d_ff or None,
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
