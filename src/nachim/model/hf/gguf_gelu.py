"""llama.cpp's Falcon, GPT-NeoX and MPT: one matrix for queries, keys and values, and a plain GELU.

Their GELU is the exact one; llama.cpp computes its approximation by tanh, in all of them, from a table in fp16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from gguf import MODEL_ARCH, MODEL_TENSOR

from nachim.model.hf.gguf import attention_facts
from nachim.model.hf.gguf_archs import Arch, attention_unfit, fused, fused_rules, name_of, norms, outer
from nachim.model.hf.rules import Rule, layers, module
from nachim.spec import FFN, MLP, Decoder, Parallel
from nachim.spec.model import Block

T = MODEL_TENSOR
STEEPEST = 8.0
"""ALiBi's slopes fall to 2 to the power of minus this."""


def falcon_rules(decoder: Decoder) -> Iterator[Rule]:
    """Both sublayers side by side; where each has a norm, that of attention is called the second."""

    def block_rules(block: Block) -> Iterator[Rule]:
        if decoder.residual == Parallel(shared=False):
            yield from module("attention_norm", name_of(T.ATTN_NORM_2), bias=True)
            yield from module("ffn_norm", name_of(T.ATTN_NORM), bias=True)
        else:
            yield from norms(decoder)
        yield from fused(block)

    yield from outer(decoder)
    yield from layers(decoder, "blk.{}.", block_rules)


def falcon_unfit(arch: Arch, decoder: Decoder, context: int) -> Iterator[str]:
    """What of a Falcon llama.cpp does not compute."""
    if not isinstance(decoder.residual, Parallel):
        yield f"the residual is {decoder.residual}, and not side by side"
    yield from attention_unfit(arch, decoder, context)


def neox_facts(decoder: Decoder, context: int) -> dict[str, Any]:
    """The metadata of a GPT-NeoX: whether its sublayers stand side by side too."""
    return {**attention_facts(decoder, context), "parallel_residual": isinstance(decoder.residual, Parallel)}


def mpt_facts(decoder: Decoder, context: int) -> dict[str, Any]:
    """The metadata of an MPT: how its slopes fall too."""
    return {**attention_facts(decoder, context), "max_alibi_bias": STEEPEST}


def plain_gelu(bias: bool) -> Callable[[FFN], FFN]:
    """GELU without a gate, exact or not."""

    def usual(ffn: FFN) -> FFN:
        exact = isinstance(ffn, MLP) and ffn.activation == "gelu"
        return MLP(d_ff=ffn.d_ff, activation="gelu" if exact else "gelu_tanh", bias=bias)

    return usual


ARCHS = {
    "falcon": Arch(MODEL_ARCH.FALCON, falcon_rules, plain_gelu(False), unfit=falcon_unfit, square=True),
    "gpt_neox": Arch(
        MODEL_ARCH.GPTNEOX,
        fused_rules,
        plain_gelu(True),
        facts=neox_facts,
        biases=("all",),
        partial=True,
        square=True,
        head=True,
    ),
    "mpt": Arch(MODEL_ARCH.MPT, fused_rules, plain_gelu(False), facts=mpt_facts, square=True),
}
