"""Positions that are added to the embedded tokens."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.build import build
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import Learned, Sinusoidal, UserError

BASE = 10_000.0
"""Of the sinusoids' wavelengths, from 2 pi to this times 2 pi (arXiv 1706.03762, sec. 3.5)."""


class LearnedModule(PositionModule):
    """Adds the row of a trained table. Positions of three axes read it by the first."""

    def __init__(self, part: Learned, d_model: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(part.length, d_model))

    def embed(self, x_BTD: Tensor, frame: Frame) -> Tensor:
        """[B, T, D] with the row of each token's position added. Raises UserError for a position beyond the table."""
        length = len(self.table)
        reached = int(frame.positions.max()) + 1 if frame.placed or length < frame.S else frame.S
        if reached > length:
            raise UserError(
                f"a sequence of {reached} tokens is longer than its table of positions, Learned.length={length}: "
                "give shorter sequences, or train a longer table"
            )
        if frame.counts_from_start:
            return x_BTD + self.table[frame.start : frame.S]
        return x_BTD + F.embedding(first_axis(frame.positions), self.table)

    def draw(self, generator: torch.Generator) -> None:
        """Begin with rows as long as those of a tied table of tokens: N(0, 1/d_model)."""
        nn.init.normal_(self.table, std=self.table.shape[1] ** -0.5, generator=generator)


class SinusoidalModule(PositionModule):
    """Adds sines in even channels and cosines in odd ones. Positions of three axes are told by the first."""

    def embed(self, x_BTD: Tensor, frame: Frame) -> Tensor:
        """[B, T, D] with the sinusoids of each token's position added."""
        width, dtype = x_BTD.shape[-1], x_BTD.dtype
        if frame.counts_from_start:
            room = 1 << max(0, frame.S - 1).bit_length()  # few tables serve all lengths
            return x_BTD + waves(width, room, dtype, x_BTD.device)[frame.start : frame.S]
        return x_BTD + sinusoids(first_axis(frame.positions), width).to(dtype)


@functools.lru_cache(maxsize=32)
def waves(d_model: int, seq_len: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`sinusoids` of the first positions [T, D] in a precision on a device, kept for the next forward pass."""
    with torch.inference_mode(False):  # whoever asks first, training must be able to use them
        return sinusoids(torch.arange(seq_len, device=device), d_model).to(dtype)


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """sin and cos of position / 10000^(2i/d_model), in turns: [..., D] in fp64 (arXiv 1706.03762, sec. 3.5)."""
    even_e = torch.arange(0, d_model, 2, dtype=torch.float64, device=positions.device)
    angle = positions[..., None].double() * BASE ** (-even_e / d_model)
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)[..., :d_model]


def first_axis(positions: Tensor) -> Tensor:
    """[T] or [B, T] positions, of three axes [3, B, T] the first."""
    return positions[0] if positions.ndim == 3 else positions


@build.register
def _(part: Learned, d_model: int) -> nn.Module:
    return LearnedModule(part, d_model)


@build.register
def _(part: Sinusoidal, d_model: int) -> nn.Module:
    return SinusoidalModule()
