"""Which families are written as GGUF files, and whether llama.cpp computes a decoder of theirs."""

from __future__ import annotations

from gguf import MODEL_ARCH_NAMES

from nachim.model.hf import gguf_archs, gguf_gelu, gguf_latent, gguf_state
from nachim.model.hf.gguf_archs import Arch, attention_unfit
from nachim.spec import Decoder, UserError

ARCHS = gguf_archs.ARCHS | gguf_gelu.ARCHS | gguf_state.ARCHS | gguf_latent.ARCHS
"""The architecture of each Hugging Face family that llama.cpp has and this writes."""


def arch_of(model_type: str, decoder: Decoder, context: int) -> Arch:
    """The architecture of a family. Raises UserError, naming the part, where llama.cpp does not compute `decoder`."""
    if model_type not in ARCHS:
        raise UserError(f"no GGUF file is written for {model_type} models; known: {', '.join(sorted(ARCHS))}")
    arch = ARCHS[model_type]
    if why := next((arch.unfit or attention_unfit)(arch, decoder, context), None):
        raise UserError(f"llama.cpp's {MODEL_ARCH_NAMES[arch.arch]} does not compute this decoder exactly: {why}")
    return arch
