"""Grouped-query attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.block import Memory
from nachim.model.build import build
from nachim.model.frame import Frame
from nachim.model.norm import rms_norm
from nachim.model.position import PositionModule
from nachim.spec import Attention, UserError


class AttentionModule(nn.Module):
    """Causal attention by torch's IO-aware kernel; `plain_attention` is its n x n reference."""

    def __init__(self, part: Attention, d_model: int) -> None:
        super().__init__()
        if part.window is not None or part.bias != "none":
            raise UserError("no module computes attention with a window or a bias: it can be planned, not trained")
        self.part = part
        self.scale: float | None = None  # torch's own 1 / sqrt(d_head)
        self.rows = (part.n_heads,) + (part.n_kv_heads,) * (2 + part.previous_key)
        self.qkv = nn.Linear(d_model, sum(self.rows) * part.d_head, bias=False)
        self.out = nn.Linear(part.n_heads * part.d_head, d_model, bias=False)
        if part.qk_norm:
            self.q_norm = rms_norm(part.d_head, eps=1e-6)
            self.k_norm = rms_norm(part.d_head, eps=1e-6)

    def forward(self, x_BTD: Tensor, frame: Frame, position: PositionModule, memory: Memory | None = None) -> Tensor:
        """[B, T, D] to [B, T, D], each token seeing those the frame allows it."""
        B, T, _ = x_BTD.shape
        part = self.part
        qkv_BHTE = self.qkv(x_BTD).view(B, T, -1, part.d_head).transpose(1, 2)
        q_BHTE, k_BKTE, v_BKTE, *p_BKTE = qkv_BHTE.split(self.rows, dim=1)
        if part.previous_key:
            k_BKTE = k_BKTE + F.pad(p_BKTE[0][:, :, :-1], (0, 0, 1, 0))
        if part.qk_norm:
            q_BHTE, k_BKTE = self.q_norm(q_BHTE), self.k_norm(k_BKTE)
        q_BHTE, k_BKTE = position.turn(q_BHTE, frame), position.turn(k_BKTE, frame)
        grouped = part.n_heads != part.n_kv_heads
        y_BHTE = F.scaled_dot_product_attention(
            q_BHTE, k_BKTE, v_BKTE, is_causal=True, enable_gqa=grouped, scale=self.scale
        )
        return self.out(y_BHTE.transpose(1, 2).reshape(B, T, -1))


def plain_attention(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
    """The n x n form (arXiv 1706.03762, eq. 1) with a causal mask: the reference the fast kernel is held against."""
    groups = q_BHTE.shape[1] // k_BKTE.shape[1]
    k_BHTE, v_BHTE = k_BKTE.repeat_interleave(groups, 1), v_BKTE.repeat_interleave(groups, 1)
    score_BHTT = q_BHTE @ k_BHTE.transpose(-1, -2) * q_BHTE.shape[-1] ** -0.5
    future_TT = torch.ones(score_BHTT.shape[-2:], dtype=torch.bool, device=score_BHTT.device).triu(1)
    return score_BHTT.masked_fill(future_TT, float("-inf")).softmax(-1) @ v_BHTE


@build.register
def _(part: Attention, d_model: int) -> nn.Module:
    return AttentionModule(part, d_model)
