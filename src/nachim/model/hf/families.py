"""The families that are known: a file for each, one line here."""

from __future__ import annotations

from typing import Any

from nachim.model.hf import (
    bloom,
    cohere,
    deepseek,
    falcon,
    gemma,
    gpt2,
    gpt_neox,
    gpt_oss,
    jamba,
    llama,
    mamba,
    mamba2,
    mistral,
    mixtral,
    mpt,
    olmo2,
    phi3,
    qwen,
    qwen_moe,
    smollm3,
    stablelm,
    starcoder2,
)
from nachim.model.hf.family import Family
from nachim.spec import UserError
from nachim.spec.error import nearest

FILES = (
    llama,
    mistral,
    mixtral,
    qwen,
    qwen_moe,
    gemma,
    smollm3,
    phi3,
    olmo2,
    gpt2,
    gpt_neox,
    bloom,
    mpt,
    falcon,
    stablelm,
    starcoder2,
    cohere,
    gpt_oss,
    deepseek,
    mamba,
    mamba2,
    jamba,
)
FAMILIES: dict[str, Family] = {family.model_type: family for file in FILES for family in file.FAMILIES}
"""Every family by its model_type; a decoder is written in the first that can express it."""


def family_of(values: dict[str, Any], where: str) -> Family:
    """The family of a config.json. Raises UserError, with the nearest known name, when there is none."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        near = nearest(str(name), FAMILIES)
        known = "" if "known:" in near else f" (known: {', '.join(sorted(FAMILIES))})"
        raise UserError(f"{where} has model_type {name!r}, which is not a family known here{near}{known}")
    return FAMILIES[name]
