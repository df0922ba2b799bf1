"""How passes call a model: its own modules, their linear layers on packed weights, as few calls in between as can be.

A module that is known to be made of linear layers, norms, positions and activations is called as a twin: the same
class and the same parameters, with other callables in place of its linear layers and its activation. Whatever else a
model has is called as it is, within a mode that puts them in for every call of torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nachim.infer.invariant import Invariant, Linears, even, normed
from nachim.model import DecoderModule
from nachim.model.attention import AttentionModule
from nachim.model.block import BlockModule
from nachim.model.frame import Frame
from nachim.model.kernels import CodedKernel
from nachim.model.mlp import GatedModule, MLPModule
from nachim.model.norm import OffsetRMSNorm, RMSNormModule
from nachim.model.position import MRoPEModule, PositionModule, RoPEModule
from nachim.model.quantized.linear import Int4Kernel, Int8Kernel, LowBitLinear

Layer = Callable[..., Tensor]
ACTIVE = (MLPModule, GatedModule)
KNOWN = {
    nn.Linear,
    nn.LayerNorm,
    AttentionModule,
    BlockModule,
    CodedKernel,
    Int4Kernel,
    Int8Kernel,
    LowBitLinear,
    MRoPEModule,
    OffsetRMSNorm,
    PositionModule,
    RMSNormModule,
    RoPEModule,
    *ACTIVE,
}
"""Modules whose twins do what the mode would have them do."""


class Form:
    """A model as passes call it: for `rows` of several sequences, or for blocks of one; `invariant` or the fastest."""

    def __init__(self, model: DecoderModule, linears: Linears, invariant: bool, rows: bool) -> None:
        self.model, self.linears = model, linears
        self.mode = Invariant(linears, rows) if invariant else None
        self.even = invariant and rows
        self.blocks: list[Layer] = [self._layer(block) for block in model.blocks]
        self.headed = _copy(model, head=self._twin(model.head))

    def embed(self, ids_BT: Tensor, frame: Frame) -> Tensor:
        """Tokens as the first block reads them, [B, T, D]."""
        if type(self.model.position) is PositionModule:
            return self.model.embed(ids_BT, frame)
        return self._within(self.model.embed, ids_BT, frame)

    def logits(self, x_BTD: Tensor, depth: int = 0) -> Tensor:
        """Logits [B, T, V] of a stream."""
        if self.model.spec.logit_cap is None:
            return self.headed.logits(x_BTD, depth)
        return self._within(self.headed.logits, x_BTD, depth)

    def draft(self, *args: Any) -> Tensor:
        """As `DecoderModule.draft`."""
        return self._within(self.model.draft, *args)

    def _layer(self, block: nn.Module) -> Layer:
        if all(type(module) in KNOWN for module in block.modules()):
            return self._twin(block)
        return functools.partial(self._within, block)

    def _within(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        if self.mode is None:
            return function(*args)
        with self.mode:
            return function(*args)

    def _twin(self, module: nn.Module) -> Any:
        if type(module) is nn.Linear:
            return self.linears.of(module)
        if type(module) is RMSNormModule:
            return normed(module)
        put = {name: self._twin(child) for name, child in module.named_children()}
        if self.even and type(module) in ACTIVE:
            put["activation"] = functools.partial(even, module.activation)
        return _copy(module, **module._parameters, **module._buffers, **put)


def _copy(module: nn.Module, **put: Any) -> Any:
    """A module of the same class and contents, with attributes put in."""
    made = object.__new__(type(module))
    made.__dict__ = {**module.__dict__, **put}
    return made
