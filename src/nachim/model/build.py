"""From a part to the module that computes it: one `build` by type."""

from __future__ import annotations

import functools

from torch import nn

from nachim.spec import Part, UserError


@functools.singledispatch
def build(part: Part, d_model: int) -> nn.Module:
    """The torch module of `part` in a model of width `d_model`; each module file registers its own.

    Raises UserError for a part without a module.
    """
    name = type(part).__name__
    raise UserError(f"no module computes {name}: it can be planned; to train it, register one with nachim.model.build")
