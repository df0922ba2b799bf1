"""Grouped-query attention: what stands around the kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.attend import Rule, attend
from nachim.model.block import Memory
from nachim.model.build import build
from nachim.model.cache import Apart
from nachim.model.frame import Frame
from nachim.model.fused import WIDEST, Heads, ready
from nachim.model.norm import rms_norm
from nachim.model.position import PositionModule, RoPEModule
from nachim.spec import Attention


class AttentionModule(nn.Module):
    """Causal attention by an exact IO-aware kernel (`attend`); `plain_attention` is its n x n reference."""

    def __init__(self, part: Attention, d_model: int) -> None:
        super().__init__()
        self.part = part
        self.scale = part.scale  # None is torch's own 1 / sqrt(d_head)
        self.rows = (part.n_heads,) + (part.n_kv_heads,) * (2 + part.previous_key)
        self.qkv = nn.Linear(d_model, sum(self.rows) * part.d_head, bias=part.bias != "none")
        self.out = nn.Linear(part.n_heads * part.d_head, d_model, bias=part.bias == "all")
        if part.qk_norm:
            for name, heads in (("q_norm", part.n_heads), ("k_norm", part.n_kv_heads)):
                width = part.d_head * (heads if part.qk_norm_over == "all" else 1)
                setattr(self, name, rms_norm(width, part.qk_norm_eps, part.qk_norm_offset))
        self.sinks = nn.Parameter(torch.zeros(part.n_heads)) if part.sinks else None

    def forward(self, x_BTD: Tensor, frame: Frame, position: PositionModule, memory: Memory | None = None) -> Tensor:
        """[B, T, D] to [B, T, D], each token seeing those the frame allows it, in `memory` or new."""
        B, T, _ = x_BTD.shape
        part = self.part
        qkv_BTR = self.qkv(x_BTD)
        if memory is None and self._fuses(qkv_BTR, position):
            q_BHTE, k_BKTE, v_BKTE = self._fused(qkv_BTR, frame, position)
        else:
            q_BHTE, k_BKTE, v_BKTE = self._heads(qkv_BTR, frame, position, memory)
        rule = Rule(part.window, self.scale, part.softcap)

        def mix(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, frame: Frame) -> Tensor:
            return attend(q_BHTE, k_BKSE, v_BKSE, frame, position, rule, self.sinks)

        if isinstance(memory, Apart):
            y_BHTE = memory.mixed(mix, q_BHTE, {"key": k_BKTE, "value": v_BKTE})
        else:
            if memory is not None:
                k_BKTE, v_BKTE = remember(memory, k_BKTE, v_BKTE, part.window)
            y_BHTE = mix(q_BHTE, k_BKTE, v_BKTE, frame)
        return self.out(y_BHTE.transpose(1, 2).reshape(B, T, -1))

    def _heads(
        self, qkv_BTR: Tensor, frame: Frame, position: PositionModule, memory: Memory | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the new tokens, [B, H or K, T, E]: normed, and their positions told."""
        part = self.part
        qkv_BHTE = qkv_BTR.unflatten(-1, (-1, part.d_head)).transpose(1, 2)
        q_BHTE, k_BKTE, v_BKTE, *p_BKTE = qkv_BHTE.split(self.rows, dim=1)
        if part.previous_key:
            k_BKTE = k_BKTE + previous(p_BKTE[0], frame, memory)
        if part.qk_norm:
            q_BHTE, k_BKTE = self._normed(self.q_norm, q_BHTE), self._normed(self.k_norm, k_BKTE)
        return position.turn(q_BHTE, frame), position.turn(k_BKTE, frame), v_BKTE

    def _fuses(self, qkv_BTR: Tensor, position: PositionModule) -> bool:
        """Whether one function does what `_heads` does: of heads that are normed plainly, and turn whole or not."""
        part, turn = self.part, type(position).turn
        turns = turn is RoPEModule.turn and position.part.turned(part.d_head) == part.d_head
        plain = not part.qk_norm or (part.qk_norm_over == "head" and not part.qk_norm_offset)
        return plain and (turns or turn is PositionModule.turn) and part.d_head <= WIDEST and ready(qkv_BTR)

    def _fused(self, qkv_BTR: Tensor, frame: Frame, position: PositionModule) -> tuple[Tensor, Tensor, Tensor]:
        """As `_heads`."""
        part = self.part
        gains = (self.q_norm.weight, self.k_norm.weight) if part.qk_norm else (None, None)
        turns = isinstance(position, RoPEModule)
        turn = position.angles(part.d_head, qkv_BTR.dtype, frame) if turns else None
        begins_BT = frame.begins_BT if part.previous_key else None
        heads = part.n_heads, part.n_kv_heads, part.previous_key
        return Heads.apply(qkv_BTR, *gains, part.qk_norm_eps, turn, begins_BT, heads)

    def _normed(self, norm: nn.Module, x_BHTE: Tensor) -> Tensor:
        if self.part.qk_norm_over == "head":
            return norm(x_BHTE)
        return norm(x_BHTE.transpose(1, 2).flatten(2)).unflatten(2, (x_BHTE.shape[1], -1)).transpose(1, 2)

    def draw(self, generator: torch.Generator) -> None:
        """Begin with sinks that weigh as much as a score of 0."""
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)


def previous(p_BKTE: Tensor, frame: Frame, memory: Memory | None) -> Tensor:
    """Each token's `p_BKTE` given to the token after it; nothing to the first of a document."""
    last_BK1E = None if memory is None else memory.get("previous")
    if last_BK1E is None:
        shifted_BKTE = F.pad(p_BKTE[:, :, :-1], (0, 0, 1, 0))
    else:
        shifted_BKTE = torch.cat((last_BK1E, p_BKTE[:, :, :-1]), 2)
    if memory is not None:
        memory["previous"] = p_BKTE[:, :, -1:].clone()
    if frame.begins_BT is not None:
        shifted_BKTE = shifted_BKTE.masked_fill(frame.begins_BT[:, None, :, None], 0)
    return shifted_BKTE


def remember(memory: Memory, k_BKTE: Tensor, v_BKTE: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Keys and values that the new tokens may attend to; `memory` keeps those that tokens after them may."""
    found = []
    for name, new_BKTE in (("key", k_BKTE), ("value", v_BKTE)):
        whole_BKSE = new_BKTE
        if name in memory:
            held = memory[name]
            first = 0 if window is None else max(0, held.shape[2] - (window - 1))
            whole_BKSE = torch.cat((held[:, :, first:], new_BKTE), 2)
        found.append(whole_BKSE)
        drop = 0 if window is None else max(0, whole_BKSE.shape[2] - window)
        # a copy: a view would keep what it was cut from
        memory[name] = whole_BKSE[:, :, drop:].clone() if drop or name not in memory else whole_BKSE
    return found[0], found[1]


@build.register
def _(part: Attention, d_model: int) -> nn.Module:
    return AttentionModule(part, d_model)
