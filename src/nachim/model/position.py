"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from nachim.spec import RoPE


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
