"""Feed-forward modules."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.build import build
from nachim.spec import SwiGLU


class SwiGLUModule(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matrix, so that small widths make one larger multiplication."""

    def __init__(self, part: SwiGLU, d_model: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * part.d_ff, bias=False)
        self.down = nn.Linear(part.d_ff, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, -1)
        return self.down(F.silu(gate_BTF) * up_BTF)


@build.register
def _(part: SwiGLU, d_model: int) -> nn.Module:
    return SwiGLUModule(part, d_model)
