"""Rotary positions in a config.json, in the spelling of transformers 4 and in that of 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nachim.model.hf.config import Config
from nachim.spec import Position, RoPE


def read_rope(config: Config, theta: float = 10_000.0, layer_type: str | None = None) -> Position:
    """The rotary position a config asks for; `theta` is the family's default base.

    transformers 5 writes `rope_parameters`, by type of layer in some families; 4 wrote `rope_theta`, `rope_scaling`.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if layer_type is not None and layer_type in given:
        given = given[layer_type] or {}
    base = given.get("rope_theta", config.get("rope_theta", theta))
    kind = given.get("rope_type", given.get("type", "default"))
    if kind != "default":
        config.refuse("rope_type", kind, "only 'default' is computed exactly here")
    return RoPE(theta=base)


def write_rope(position: Position, context: int) -> Mapping[str, Any]:
    """The keys of `position`, in the spelling that every release of transformers reads."""
    return {"rope_theta": position.theta} if isinstance(position, RoPE) else {}
