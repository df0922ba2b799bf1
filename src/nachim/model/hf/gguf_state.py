"""llama.cpp's state spaces, Mamba and Mamba-2, and Jamba, where they take turns with attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gguf import MODEL_ARCH, MODEL_TENSOR

from nachim.model.hf.gguf_archs import Arch, forward, name_of, norms, outer, separate
from nachim.model.hf.rules import KEEP, Rule, each, layers, module, rule, shaped
from nachim.spec import Attention, Decoder, Mamba, Mamba2, MoE
from nachim.spec.model import Block

T = MODEL_TENSOR
LONGEST = 2**20
"""The context that is told of models which know no longest one."""
RATE = each(lambda rate: (-rate).log(), lambda logarithm: -logarithm.float().exp())
"""Rates of decay, below 0, where here their logarithms are."""


def state_rules(block: Block) -> Iterator[Rule]:
    """A selective state space, with the norms inside it where there are; Mamba-2's vectors are columns of a matrix."""
    part, headed = block.mixer, isinstance(block.mixer, Mamba2)
    column = shaped((-1, 1), (-1,)) if headed else KEEP
    yield from module("attention.enter", name_of(T.SSM_IN))
    yield rule("attention.convolution.kernel", f"{name_of(T.SSM_CONV1D)}.weight")
    yield rule("attention.convolution.bias", f"{name_of(T.SSM_CONV1D)}.bias")
    yield rule("attention.A_log", name_of(T.SSM_A), column.then(RATE))
    yield rule("attention.D", name_of(T.SSM_D), column)
    if headed:
        yield rule("attention.dt_bias", f"{name_of(T.SSM_DT)}.bias")
        grouped = shaped((part.n_groups, part.d_inner // part.n_groups), (-1,))
        yield from module("attention.norm", name_of(T.SSM_NORM), grouped)
    else:
        yield from module("attention.select", name_of(T.SSM_X))
        yield from module("attention.step", name_of(T.SSM_DT), bias=True)
        for number, tensor in enumerate((T.SSM_DT_NORM, T.SSM_B_NORM, T.SSM_C_NORM) if part.inner_norm else ()):
            yield from module(f"attention.norms.{number}", name_of(tensor))
    yield from module("attention.out", name_of(T.SSM_OUT))


def mamba_rules(decoder: Decoder) -> Iterator[Rule]:
    """Blocks that are a state space each, Mamba's or Mamba-2's."""
    yield from outer(decoder)
    yield from layers(
        decoder, "blk.{}.", lambda block: (*module("attention_norm", name_of(T.ATTN_NORM)), *state_rules(block))
    )


def jamba_rules(decoder: Decoder) -> Iterator[Rule]:
    """State spaces and attention in turn, a feed-forward after each."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from norms(decoder)
        if isinstance(block.mixer, Attention):
            yield from separate(block)
        else:
            yield from state_rules(block)
            yield from forward(block.ffn)

    yield from outer(decoder)
    yield from layers(decoder, "blk.{}.", block_rules)


def state_facts(decoder: Decoder, context: int) -> dict[str, Any]:
    """The metadata of a decoder with state spaces; heads of keys are told of each layer where some attend."""
    parts = [block.mixer for block in decoder.blocks]
    ffns = [block.ffn for block in decoder.blocks]
    state = next(part for part in parts if not isinstance(part, Attention))
    attention = next((part for part in parts if isinstance(part, Attention)), None)
    experts = next((ffn for ffn in ffns if isinstance(ffn, MoE)), None)
    facts = {
        "context_length": LONGEST if attention is None else context,
        "embedding_length": decoder.d_model,
        "block_count": decoder.n_layers,
        "feed_forward_length": 0 if ffns[0] is None else ffns[0].d_ff,
        "layer_norm_rms_eps": decoder.norm.eps,
        "head_count": 0 if attention is None else attention.n_heads,
        "ssm_conv_kernel": state.d_conv,
        "ssm_inner_size": state.d_inner,
        "ssm_state_size": state.d_state,
    }
    if isinstance(state, Mamba2):
        return facts | {"ssm_time_step_rank": state.n_heads, "ssm_group_count": state.n_groups}
    facts |= {"ssm_time_step_rank": state.dt_rank, "ssm_dt_b_c_rms": False}
    if attention is not None:
        facts["head_count_kv"] = [part.n_kv_heads if isinstance(part, Attention) else 0 for part in parts]
    if experts is not None:
        facts |= {"expert_count": experts.experts, "expert_used_count": experts.active}
    return facts


def mamba_unfit(arch: Arch, decoder: Decoder, context: int) -> Iterator[str]:
    """What of a Mamba or Mamba-2 llama.cpp does not compute: nothing but norms whose root has another constant."""
    for block in decoder.blocks:
        if isinstance(block.mixer, Mamba2) and block.mixer.eps != decoder.norm.eps:
            yield f"Mamba2.eps is {block.mixer.eps}"


def jamba_unfit(arch: Arch, decoder: Decoder, context: int) -> Iterator[str]:
    """What of a Jamba llama.cpp does not compute."""
    if not any(isinstance(block.mixer, Mamba) for block in decoder.blocks):
        yield "no layer is a state space"
    for block in decoder.blocks:
        if isinstance(block.mixer, Mamba) and block.mixer.eps != decoder.norm.eps:
            yield f"Mamba.eps is {block.mixer.eps}"


ARCHS = {
    "mamba": Arch(MODEL_ARCH.MAMBA, mamba_rules, facts=state_facts, unfit=mamba_unfit),
    "mamba2": Arch(MODEL_ARCH.MAMBA2, mamba_rules, facts=state_facts, unfit=mamba_unfit),
    "jamba": Arch(MODEL_ARCH.JAMBA, jamba_rules, facts=state_facts, unfit=jamba_unfit),
}
