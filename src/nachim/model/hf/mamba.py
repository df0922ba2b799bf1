"""Mamba: blocks of selective state spaces alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from nachim.model.hf.common import read_shape, write_shape
from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.rules import Rule, layers, module, rule, shaped
from nachim.spec import Decoder, Mamba, NoPosition, RMSNorm
from nachim.spec.model import Block

TRAINING = (
    "fused_add_norm",
    "max_position_embeddings",
    "pad_vocab_size_multiple",
    "rescale_prenorm_residual",
    "residual_in_fp32",
    "ssm_cfg",
    "time_step_floor",
    "time_step_init_scheme",
    "time_step_max",
    "time_step_min",
    "time_step_scale",
    "use_associative_scan",
    "use_mambapy",
)
"""How weights begin, which kernels run, in which precision sums are kept."""
TWICE = ("d_inner", "d_model", "intermediate_size", "n_layer", "norm_before_gate", "rms_norm")
"""What published configs say once more, or what transformers does not ask for."""


def to_spec(config: Config) -> Decoder:
    """The decoder of a Mamba config."""
    shape = read_common(config, tied=True)
    width = shape["d_model"]
    part = Mamba(
        d_inner=config.get("expand", 2) * width,
        d_state=config.get("state_size", 16),
        dt_rank=rank(config, "time_step_rank", width),
        d_conv=config.get("conv_kernel", 4),
    )
    return Decoder(**shape, attention=part)


def read_common(config: Config, tied: bool) -> dict[str, Any]:
    """What configs of Mamba and Mamba-2 say alike: all fields of a decoder but its mixer."""
    config.without_effect(*TRAINING, *TWICE)
    config.only("hidden_act", "silu")
    config.only("use_bias", False)
    config.only("use_conv_bias", True)
    norm = RMSNorm(eps=config.get("layer_norm_epsilon", 1e-5))
    return {**read_shape(config, tied), "ffn": None, "norm": norm, "position": NoPosition()}


def rank(config: Config, key: str, d_model: int) -> int:
    """The number of values that give step sizes; "auto" is a sixteenth of the width."""
    found = config.get(key, "auto")
    return math.ceil(d_model / 16) if found == "auto" else found


def write_common(decoder: Decoder) -> dict[str, Any]:
    """The keys that `read_common` reads."""
    shape = write_shape(decoder, 0)
    del shape["max_position_embeddings"]
    return {
        **shape,
        "expand": decoder.blocks[0].mixer.d_inner // decoder.d_model,
        "state_size": decoder.blocks[0].mixer.d_state,
        "conv_kernel": decoder.blocks[0].mixer.d_conv,
        "layer_norm_epsilon": decoder.norm.eps,
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
    }


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Mamba config nearest to a decoder; it knows no longest context."""
    return {**write_common(decoder), "time_step_rank": decoder.blocks[0].mixer.dt_rank}


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a Mamba checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "norm")
        yield from mixer_rules(block.mixer, "mixer")

    yield from outer_rules()
    yield from layers(decoder, "backbone.layers.{}.", block_rules)


def outer_rules() -> Iterator[Rule]:
    """Embedding, last norm and head of Mamba and Mamba-2."""
    yield from module("embedding", "backbone.embeddings")
    yield from module("norm", "backbone.norm_f")
    yield from module("head", "lm_head")


def mixer_rules(part: Mamba, theirs: str) -> Iterator[Rule]:
    """A selective state space, with the inner norms where there are."""
    yield from module("attention.enter", f"{theirs}.in_proj")
    yield from convolution_rules(part.d_conv, theirs)
    yield from module("attention.select", f"{theirs}.x_proj")
    yield from module("attention.step", f"{theirs}.dt_proj", bias=True)
    for name in ("A_log", "D"):
        yield rule(f"attention.{name}", f"{theirs}.{name}")
    for number, name in enumerate(("dt", "b", "c") if part.inner_norm else ()):
        yield from module(f"attention.norms.{number}", f"{theirs}.{name}_layernorm")
    yield from module("attention.out", f"{theirs}.out_proj")


def convolution_rules(width: int, theirs: str) -> Iterator[Rule]:
    """The causal convolution."""
    kernel = shaped((-1, 1, width), (-1, width))
    yield rule("attention.convolution.kernel", f"{theirs}.conv1d.weight", kernel)
    yield rule("attention.convolution.bias", f"{theirs}.conv1d.bias")


FAMILIES = (Family("mamba", "MambaForCausalLM", to_spec, to_config, rules, base="backbone."),)
