"""Fewer key-value heads for a decoder that is trained already: "uptraining" (arXiv 2305.13245, sec. 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nachim.model.attention import AttentionModule
from nachim.model.build import build
from nachim.spec import Attention, Decoder, Part, Pattern, UserError


def pooled(decoder: Decoder, weights: Mapping[str, Tensor], n_kv_heads: int) -> tuple[Decoder, dict[str, Tensor]]:
    """The decoder with `n_kv_heads` heads of keys and values in every `Attention`, and its weights.

    A new head is the mean of the heads whose queries it serves, which keeps everything as it was where these are
    equal; elsewhere training must go on. Weights keep their precision. Raises UserError where the heads do not divide.
    """
    with torch.device("meta"):
        modules = build(decoder, decoder.d_model).named_modules()
    found = dict(weights)
    for name, module in modules:
        if isinstance(module, AttentionModule):
            found.update(_pooled_module(f"{name}.", module, weights, n_kv_heads))
    attention = _with_heads(decoder.attention, n_kv_heads)
    if attention == decoder.attention:
        raise UserError(f"no attention of this decoder has another number of key-value heads than {n_kv_heads}")
    return replace(decoder, attention=attention), found


def _with_heads(part: Part, n_kv_heads: int) -> Part:
    if isinstance(part, Pattern):
        every = {
            name: tuple(_with_heads(one, n_kv_heads) for one in getattr(part, name)) for name in ("first", "parts")
        }
        return Pattern(**every)
    if not isinstance(part, Attention):
        return part
    if n_kv_heads < 1 or part.n_kv_heads % n_kv_heads:
        part.refuse("n_kv_heads", f"is {part.n_kv_heads}; it cannot be pooled into {n_kv_heads}, which must divide it")
    return replace(part, n_kv_heads=n_kv_heads)


def _pooled_module(
    prefix: str, module: AttentionModule, weights: Mapping[str, Tensor], n_kv_heads: int
) -> dict[str, Tensor]:
    """The tensors of one attention that change: projections, and gains that every head has of its own."""
    part = _with_heads(module.part, n_kv_heads)
    found = {}
    for name in ("qkv.weight", "qkv.bias"):
        if prefix + name in weights:
            heads = weights[prefix + name].unflatten(0, (-1, part.d_head))
            queries, *others = heads.split(module.rows)
            found[prefix + name] = torch.cat([queries, *(_mean(one, n_kv_heads) for one in others)]).flatten(0, 1)
    if module.part.qk_norm and module.part.qk_norm_over == "all":
        name = f"{prefix}k_norm.weight"
        found[name] = _mean(weights[name].unflatten(0, (-1, part.d_head)), n_kv_heads).flatten()
    return found


def _mean(heads: Tensor, count: int) -> Tensor:
    """[K, ...] to [count, ...]: neighbours pooled, in fp32 at least."""
    exact = heads.to(torch.promote_types(heads.dtype, torch.float32))
    return exact.unflatten(0, (count, -1)).mean(1).to(heads.dtype)
