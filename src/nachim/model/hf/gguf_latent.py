"""llama.cpp's latent attention: DeepSeek-V2 and V3. Modules for further tokens are left out, as it computes none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_TENSOR, ExpertGatingFuncType
from gguf import RopeScalingType as Stretch

from nachim.model.hf.deepseek import ends_turned
from nachim.model.hf.gguf_archs import Arch, forward, name_of, norms, outer
from nachim.model.hf.rules import Rule, Tensors, Transform, layers, module, rule
from nachim.spec import MLA, Decoder, MoE, YaRN
from nachim.spec.model import Block

T = MODEL_TENSOR
LITE = 27
"""Layers of DeepSeek-V2-Lite: by them llama.cpp knows that queries come straight from the token."""
GATES = {"softmax": ExpertGatingFuncType.SOFTMAX, "sigmoid": ExpertGatingFuncType.SIGMOID}


def rebuilding(part: MLA) -> Transform:
    """Keys' and values' matrices apart, a head at a time, those of keys turned round, for decoding absorbs them."""

    def read(theirs: Tensors) -> Tensors:
        k_HCE, v_HEC = theirs
        return (torch.cat((k_HCE.mT, v_HEC), 1).flatten(0, 1).contiguous(),)

    def write(ours: Tensors) -> Tensors:
        up_HEC = ours[0].unflatten(0, (part.n_heads, -1))
        k_HEC, v_HEC = up_HEC.split((part.d_head, part.value_width), 1)
        return k_HEC.mT.contiguous(), v_HEC.contiguous()

    return Transform(read, write)


def latent_rules(decoder: Decoder) -> Iterator[Rule]:
    """Latent attention, then a dense feed-forward or experts; rotary rows stand in interleaved pairs."""

    def block_rules(block: Block) -> Iterator[Rule]:
        part = block.mixer
        heads, shared = ends_turned(part.d_head, part.rope_dim), ends_turned(part.rank, part.rope_dim)
        yield from norms(decoder)
        if part.q_rank is None:
            yield from module("attention.q", name_of(T.ATTN_Q), heads)
        else:
            yield from module("attention.q_down", name_of(T.ATTN_Q_A))
            yield from module("attention.q_norm", name_of(T.ATTN_Q_A_NORM))
            yield from module("attention.q_up", name_of(T.ATTN_Q_B), heads)
        yield from module("attention.kv_down", name_of(T.ATTN_KV_A_MQA), shared)
        yield from module("attention.kv_norm", name_of(T.ATTN_KV_A_NORM))
        yield from module("attention.kv_up", [name_of(T.ATTN_K_B), name_of(T.ATTN_V_B)], rebuilding(part))
        yield from module("attention.out", name_of(T.ATTN_OUT))
        yield from forward(block.ffn)
        if isinstance(block.ffn, MoE) and block.ffn.bias_step is not None:
            yield rule("ffn.router.selection_bias", f"{name_of(T.FFN_EXP_PROBS_B)}.bias")

    yield from outer(decoder)
    yield from layers(decoder, "blk.{}.", block_rules)


def latent_facts(decoder: Decoder, context: int) -> dict[str, Any]:
    """The metadata of a DeepSeek: what stands in its cache is one key of all heads."""
    part, last, position = decoder.blocks[0].mixer, decoder.blocks[-1].ffn, decoder.blocks[0].position
    dense = [block.ffn for block in decoder.blocks if not isinstance(block.ffn, MoE)]
    facts = {
        "context_length": context,
        "embedding_length": decoder.d_model,
        "block_count": decoder.n_layers,
        "feed_forward_length": (dense[0] if dense else last).d_ff,
        "leading_dense_block_count": len(dense),
        "layer_norm_rms_eps": decoder.norm.eps,
        "head_count": part.n_heads,
        "head_count_kv": 1,
        "q_lora_rank": part.q_rank,
        "kv_lora_rank": part.rank,
        "key_length": part.rank + part.rope_dim,
        "value_length": part.rank,
        "key_length_mla": part.key_width,
        "value_length_mla": part.value_width,
        "rope_freq_base": position.theta,
        "rope_dimension_count": part.rope_dim,
        **(routed_facts(last) if isinstance(last, MoE) else {}),
    }
    if isinstance(position.scaling, YaRN):
        scaling = position.scaling
        facts |= {"rope_scaling_type": Stretch.YARN, "rope_scaling_factor": scaling.factor}
        facts |= {"rope_scaling_orig_ctx_len": scaling.original}
        facts |= {"rope_scaling_yarn_log_mul": 0.1 * (scaling.mscale_all_dim or 0.0)}
    return {name: value for name, value in facts.items() if value is not None}


def routed_facts(part: MoE) -> dict[str, Any]:
    """The metadata of its experts."""
    facts = {
        "expert_count": part.experts,
        "expert_used_count": part.active,
        "expert_shared_count": part.shared,
        "expert_feed_forward_length": part.d_ff,
        "expert_weights_scale": part.scale,
        "expert_weights_norm": part.renormalised,
        "expert_gating_func": GATES[part.scores],
    }
    if part.groups > 1:
        facts |= {"expert_group_count": part.groups, "expert_group_used_count": part.top_groups}
    return facts


def latent_unfit(arch: Arch, decoder: Decoder, context: int) -> Iterator[str]:
    """What of a DeepSeek llama.cpp does not compute."""
    for block in decoder.blocks:
        part, ffn, scaling = block.mixer, block.ffn, block.position.scaling
        if (part.q_rank is None) != (decoder.n_layers == LITE):
            yield f"MLA.q_rank is {part.q_rank}, which it takes from the number of layers ({LITE}: None)"
        if part.eps != decoder.norm.eps:
            yield f"MLA.eps is {part.eps}"
        if isinstance(ffn, MoE) and ffn.groups > 1 and ffn.group_score != "top2":
            yield f"MoE.group_score is {ffn.group_score!r}"
        if scaling is None:
            continue
        usual = isinstance(scaling, YaRN) and math.isclose(scaling.magnitude, 1)
        if not usual or scaling != YaRN(
            factor=scaling.factor,
            original=scaling.original,
            mscale=scaling.mscale,
            mscale_all_dim=scaling.mscale_all_dim,
        ):
            yield f"RoPE.scaling is {scaling}"


LATENT = Arch(MODEL_ARCH.DEEPSEEK2, latent_rules, facts=latent_facts, unfit=latent_unfit)
ARCHS = {"deepseek_v2": LATENT, "deepseek_v3": LATENT}
