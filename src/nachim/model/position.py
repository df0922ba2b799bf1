"""How modules know the order of tokens: turned queries and keys, tables beside the embedding, biases on scores."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from nachim.model.build import build
from nachim.model.frame import Frame
from nachim.spec import NoPosition, RoPE


class PositionModule(nn.Module):
    """Base of position modules: leaves everything as it is. A layer has one; each kind overrides what it does."""

    def embed(self, x_BTD: Tensor, frame: Frame) -> Tensor:
        """Embedded tokens with their positions told, once, before the first layer."""
        return x_BTD

    def turn(self, x_BHTE: Tensor, frame: Frame) -> Tensor:
        """Queries or keys of the new tokens with their positions told."""
        return x_BHTE

    def bias(self, frame: Frame, keys: int, n_heads: int) -> Tensor | None:
        """What is added to the scores of the new tokens with the last `keys` tokens: [B or 1, n_heads, T, keys].

        The mask is not in it; what it says of tokens that may not be attended to has no meaning, but is finite.
        """
        return None


class RoPEModule(PositionModule):
    """Turns each pair of channels by its position times its frequency."""

    def __init__(self, part: RoPE) -> None:
        super().__init__()
        self.part = part

    def turn(self, x_BHTE: Tensor, frame: Frame) -> Tensor:
        """[B, H, T, E] to the same, each head vector turned by its token's position."""
        cos, sin = frame.once((self.part, x_BHTE.shape[-1], x_BHTE.dtype), lambda: self._angles(x_BHTE, frame))
        return rotate(x_BHTE, cos, sin)

    def _angles(self, x_BHTE: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [T, E] or [B, 1, T, E]."""
        length = frame.S if frame.counts_from_start else int(frame.positions.max()) + 1
        room = 1 << max(0, length - 1).bit_length()  # few tables serve all lengths
        tables = turns(self.part, x_BHTE.shape[-1], room, x_BHTE.dtype, x_BHTE.device)
        if frame.counts_from_start:
            return tables[0][frame.start : frame.S], tables[1][frame.start : frame.S]
        positions = frame.positions if frame.positions.ndim == 2 else frame.positions[None]
        return tables[0][positions][:, None], tables[1][positions][:, None]


@functools.lru_cache(maxsize=32)
def turns(part: RoPE, d_head: int, seq_len: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """`rotations` in a precision on a device, kept for the next forward pass."""
    with torch.inference_mode(False):  # whoever asks first, training must be able to use them
        cos_TE, sin_TE = rotations(part, d_head, seq_len)
        return cos_TE.to(device, dtype), sin_TE.to(device, dtype)


def rotations(part: RoPE, d_head: int, seq_len: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [T, E], of the angles position * theta^(-2i/d_head) (arXiv 2104.09864, eq. 15).

    Both halves of the last axis hold the same angles; the first half of the sines is negated, so that
    `rotate` needs one multiply-add: this is the half-split layout of the Hugging Face Llama family.
    """
    frequency_e = part.theta ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle_Te = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequency_e)
    cos_TE = torch.cat((angle_Te.cos(), angle_Te.cos()), -1)
    sin_TE = torch.cat((-angle_Te.sin(), angle_Te.sin()), -1)
    return cos_TE.float(), sin_TE.float()


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Turn each head vector by its position."""
    return x_BHTE * cos_TE + x_BHTE.roll(x_BHTE.shape[-1] // 2, -1) * sin_TE


@build.register
def _(part: RoPE, d_model: int) -> nn.Module:
    return RoPEModule(part)


@build.register
def _(part: NoPosition, d_model: int) -> nn.Module:
    return PositionModule()
