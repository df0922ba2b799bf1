"""One mixer without a decoder around it: built, drawn, run, and its operations counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nachim.model import DecoderModule, build  # noqa: F401 - the decoder's module registers those of its parts
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import Mixer, NoPosition, Position
from tests.budget.test_activations import by_autograd

WIDTH = 16


def drawn(part: Mixer, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module of `part` in a model `WIDTH` wide, no weight where it starts."""
    module, generator = build(part, WIDTH), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
        for inner in module.modules():
            if hasattr(inner, "draw"):
                inner.draw(generator)
        for weight in module.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return module.to(dtype)


def position_of(part: Position = NoPosition()) -> PositionModule:
    """The module of a position."""
    return build(part, WIDTH)


def framed(x_BTD: Tensor, start: int = 0, documents_BS: Tensor | None = None) -> Frame:
    """The frame of these tokens."""
    return Frame(tuple(x_BTD.shape[:2]), x_BTD.device, start, documents_BS)


def run(
    module: nn.Module, x_BTD: Tensor, documents_BT: Tensor | None = None, position: Position = NoPosition()
) -> Tensor:
    """All tokens at once."""
    return module(x_BTD, framed(x_BTD, 0, documents_BT), position_of(position))


def counted(part: Mixer, x_BTD: Tensor, start: int = 0, memory: dict[str, Tensor] | None = None) -> int:
    """FLOP of one forward pass: products, and triangular systems at half of a product."""
    module, frame = drawn(part), framed(x_BTD, start)
    mapping = {torch.ops.aten.linalg_solve_triangular: _solved}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=mapping) as found:
        module(x_BTD, frame, position_of(), memory)
    return found.get_total_flops()


def remembered(part: Mixer, tokens: int = 256, position: Position = NoPosition()) -> float:
    """Values a token leaves behind for the backward pass in fp32, without the input of the norm before the mixer.

    What all layers share (masks, angles, decays of fixed rates) is little beside them.
    """
    module, x_BTD, place = drawn(part), torch.randn(2, tokens, WIDTH).requires_grad_(), position_of(position)
    return by_autograd(module, x_BTD, lambda x: module(x, framed(x), place)) / x_BTD[..., 0].nbytes


def declared(part: Mixer) -> float:
    """What the part says `remembered` is."""
    saved = part.saved(WIDTH)
    return saved.whole + saved.split - WIDTH


def _solved(system: Any, right: Any, *_: Any, **__: Any) -> int:
    """C equations for each column: C / 2 multiply-adds an unknown, on average."""
    return torch.Size(right).numel() * system[-1]
