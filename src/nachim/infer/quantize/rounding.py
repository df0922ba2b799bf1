"""Which matrices of a model go into few bits, and all of them rounded to nearest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import nn

from nachim.model.moe import Stack
from nachim.model.quantized.grid import Coded, nearest
from nachim.model.quantized.linear import matrices
from nachim.spec import UserError
from nachim.spec.error import nearest as alike
from nachim.spec.quantize import Grouped, Scheme

GROUPS = (256, 128, 64, 32, 16)
"""Proposed where the one asked for does not divide."""


def chosen(model: nn.Module, scheme: Scheme, skip: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of the weights that go into few bits: all that can (`matrices`) but those that `skip` names.

    What is skipped is given by parts of names that follow one another: "ffn.down", "blocks.0", a whole name. Raises
    UserError where one names nothing, nothing is left, or groups do not divide a row.
    """
    found = matrices(model)
    for part in skip:
        if not (named := [name for name in found if f".{part}." in f".{name}."]):
            whole = [name.removesuffix(".weight") for name in found]
            known = {piece for name in whole for piece in (name, name.split(".", 2)[2])}
            raise UserError(f"no matrix is named {part!r}, so that none can be skipped{alike(part, sorted(known))}")
        found = {name: module for name, module in found.items() if name not in named}
    if not found:
        raise UserError("no matrix is left to be quantised: skip fewer")
    for name, module in found.items():
        inputs = module.weight.shape[-1]
        if isinstance(scheme, Grouped) and inputs % scheme.group:
            widths = {each.weight.shape[-1] for each in found.values()}
            fit = [str(group) for group in GROUPS if not any(width % group for width in widths)]
            instead = f"groups of {', '.join(fit)} divide all" if fit else "skip it"
            raise UserError(f"{name} has {inputs} inputs, which groups of {scheme.group} do not divide: {instead}")
    return tuple(found)


@torch.no_grad()
def rounded(model: nn.Module, names: Collection[str], scheme: Scheme) -> dict[str, list[Coded]]:
    """The weights `names` rounded to nearest: one matrix each, or one for every expert."""
    return {name: [nearest(weight, scheme) for weight in each_of(model, name)] for name in names}


def each_of(model: nn.Module, name: str) -> list[torch.Tensor]:
    """The matrices [O, I] of a weight."""
    module = model.get_submodule(name.removesuffix(".weight"))
    return list(module.weight) if isinstance(module, Stack) else [module.weight]


def bytes_by_layer(names: Iterable[str], scheme: Scheme, model: nn.Module) -> Mapping[str, tuple[int, int]]:
    """Bytes of matrices before and after, for each weight, divisors not counted."""
    found = {}
    for name in names:
        each: Sequence[torch.Tensor] = each_of(model, name)
        found[name] = (sum(one.nbytes for one in each), sum(scheme.bytes(*one.shape) for one in each))
    return found
