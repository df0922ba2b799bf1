"""Latent attention under the names, and in the layout, of transformers' DeepSeek families."""

from __future__ import annotations

import torch
from torch import Tensor

from nachim.spec import MLA


def paired(weight: Tensor, heads: int, left: int, rope_dim: int) -> Tensor:
    """Rows of `heads` that end in `rope_dim` turned ones: from halves, as here, to pairs side by side, as there."""
    head = weight.unflatten(0, (heads, -1))
    turned = head[:, left:].unflatten(1, (2, rope_dim // 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat((head[:, :left], turned), 1).flatten(0, 1)


def theirs(part: MLA, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors (weights or gradients) under transformers' names, in its layout."""
    names = {"kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj", "out": "o_proj", "q_down": "q_a_proj"}
    names |= {"q_norm": "q_a_layernorm", "q_up": "q_b_proj", "q": "q_proj", "kv_down": "kv_a_proj_with_mqa"}
    found = {f"{names[name.removesuffix('.weight')]}.weight": weight for name, weight in ours.items()}
    for name, heads, left in (
        ("q_proj", part.n_heads, part.d_head),
        ("q_b_proj", part.n_heads, part.d_head),
        ("kv_a_proj_with_mqa", 1, part.rank),
    ):
        if f"{name}.weight" in found:
            found[f"{name}.weight"] = paired(found[f"{name}.weight"], heads, left, part.rope_dim)
    return found
