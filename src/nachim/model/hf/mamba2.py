"""Mamba-2: blocks of state spaces with a decay a head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from nachim.model.hf.config import Config
from nachim.model.hf.family import Family
from nachim.model.hf.mamba import convolution_rules, outer_rules, read_common, write_common
from nachim.model.hf.rules import Rule, layers, module, rule
from nachim.spec import Decoder, Mamba2
from nachim.spec.model import Block

UNLIMITED = [0.0, math.inf]


def to_spec(config: Config) -> Decoder:
    """The decoder of a Mamba-2 config."""
    shape = read_common(config, tied=False)
    config.without_effect("time_step_rank")
    limit = config.get("time_step_limit", UNLIMITED)
    if [_number(bound) for bound in limit] != UNLIMITED:
        config.refuse("time_step_limit", limit, "only steps without limits are computed exactly here")
    part = Mamba2(
        n_heads=config.get("num_heads", 128),
        d_head=config.get("head_dim", 64),
        d_state=config.get("state_size", 128),
        n_groups=config.get("n_groups", 8),
        d_conv=config.get("conv_kernel", 4),
        chunk=config.get("chunk_size", 256),
        eps=shape["norm"].eps,
    )
    if part.d_inner != config.get("expand", 2) * shape["d_model"]:
        config.refuse("num_heads", part.n_heads, f"heads of {part.d_head} must make up expand * hidden_size channels")
    return Decoder(**shape, attention=part)


def _number(value: float | dict[str, str]) -> float:
    """A number, or, as transformers writes what JSON has no number for, {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def to_config(decoder: Decoder, context: int) -> dict[str, Any]:
    """The Mamba-2 config nearest to a decoder; it knows no longest context."""
    part = decoder.blocks[0].mixer
    return {
        **write_common(decoder),
        "num_heads": part.n_heads,
        "head_dim": part.d_head,
        "n_groups": part.n_groups,
        "chunk_size": part.chunk,
    }


def rules(decoder: Decoder, config: Config) -> Iterator[Rule]:
    """The tensors of a Mamba-2 checkpoint."""

    def block_rules(block: Block) -> Iterator[Rule]:
        yield from module("attention_norm", "norm")
        yield from module("attention.enter", "mixer.in_proj")
        yield from convolution_rules(block.mixer.d_conv, "mixer")
        for name in ("dt_bias", "A_log", "D"):
            yield rule(f"attention.{name}", f"mixer.{name}")
        yield from module("attention.norm", "mixer.norm")
        yield from module("attention.out", "mixer.out_proj")

    yield from outer_rules()
    yield from layers(decoder, "backbone.layers.{}.", block_rules)


FAMILIES = (Family("mamba2", "Mamba2ForCausalLM", to_spec, to_config, rules, base="backbone."),)
