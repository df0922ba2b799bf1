"""From a part to the module that computes it: one `build` by type."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from nachim.spec import Part, UserError


@functools.singledispatch
def build(part: Part, d_model: int) -> nn.Module:
    """The torch module of `part` in a model of width `d_model`; each module file registers its own.

    Raises UserError for a part without a module.
    """
    name = type(part).__name__
    raise UserError(f"no module computes {name}: it can be planned; to train it, register one with nachim.model.build")


class NotDrawn(TorchFunctionMode):
    """Within it, nothing is drawn for new parameters: what is loaded takes their place, or their shapes are all.

    On the meta device it saves more than the numbers: a draw there has torch import its compiler, 1.5 s of work.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)
