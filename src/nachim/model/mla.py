"""Multi-head latent attention: keys and values rebuilt from a narrow latent, or never rebuilt at all."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.attend import Rule, attend
from nachim.model.block import Memory
from nachim.model.build import build
from nachim.model.cache import Apart
from nachim.model.frame import Frame
from nachim.model.norm import rms_norm
from nachim.model.position import PositionModule
from nachim.spec import MLA


class MLAModule(nn.Module):
    """MLA (arXiv 2405.04434, eq. 9-19 and 37-47); the norms on the narrow values are those of its sec. 3.1.2.

    A token's latent is its `rank` normalised values, then `rope_dim` ones, turned by its position, that all heads share
    as the end of their keys; queries end in `rope_dim` values of their own. `rebuilt` makes every head's keys and
    values from the latents, `absorbed` takes the rebuilding matrices into queries and outputs; both give the same.
    """

    def __init__(self, part: MLA, d_model: int) -> None:
        super().__init__()
        self.part = part
        self.scale = part.factor
        queries = part.n_heads * part.key_width
        if part.q_rank is None:
            self.q = nn.Linear(d_model, queries, bias=False)
        else:
            self.q_down = nn.Linear(d_model, part.q_rank, bias=False)
            self.q_norm = rms_norm(part.q_rank, part.eps)
            self.q_up = nn.Linear(part.q_rank, queries, bias=False)
        self.kv_down = nn.Linear(d_model, part.rank + part.rope_dim, bias=False)
        self.kv_norm = rms_norm(part.rank, part.eps)
        self.kv_up = nn.Linear(part.rank, part.n_heads * (part.d_head + part.value_width), bias=False)
        self.out = nn.Linear(part.n_heads * part.value_width, d_model, bias=False)

    def forward(self, x_BTD: Tensor, frame: Frame, position: PositionModule, memory: Memory | None = None) -> Tensor:
        """[B, T, D] to [B, T, D], each token seeing those the frame allows it; `memory` keeps the latents [B, S, C]."""
        q_BHTE, latent_BSC = self.queries(x_BTD, frame, position), self.latents(x_BTD, frame, position)
        if isinstance(memory, Apart):
            y_BHTE = memory.mixed(functools.partial(self.mix, position), q_BHTE, {"latent": latent_BSC})
        else:
            if memory is not None:
                if memory:
                    latent_BSC = torch.cat((memory["latent"], latent_BSC), 1)
                memory["latent"] = latent_BSC
            y_BHTE = self.mix(position, q_BHTE, latent_BSC, frame)
        return self.out(y_BHTE.transpose(1, 2).flatten(2))

    def mix(self, position: PositionModule, q_BHTE: Tensor, latent_BSC: Tensor, frame: Frame) -> Tensor:
        """[B, H, T, d_value]: what each new token takes from all the latents it may meet."""
        form = self.absorbed if self.absorbs(frame) else self.rebuilt
        return form(q_BHTE, latent_BSC, frame, position)

    def absorbs(self, frame: Frame) -> bool:
        """Whether the absorbed form takes fewer FLOP for the new tokens: always when they come one by one.

        It works on the latents of all tokens, but does without rebuilding those of the tokens before.
        """
        part = self.part
        wider = 2 * part.rank - part.d_head - part.value_width
        rebuilding = part.rank * (part.d_head + part.value_width)
        return frame.start > 0 and (frame.T == 1 or frame.T * frame.S * wider <= frame.start * rebuilding)

    def queries(self, x_BTD: Tensor, frame: Frame, position: PositionModule) -> Tensor:
        """Every head's queries [B, H, T, E], their last `rope_dim` values turned."""
        part = self.part
        q_BTC = self.q(x_BTD) if part.q_rank is None else self.q_up(self.q_norm(self.q_down(x_BTD)))
        q_BHTE = q_BTC.unflatten(-1, (part.n_heads, -1)).transpose(1, 2)
        own_BHTE, turned_BHTE = q_BHTE.split((part.d_head, part.rope_dim), -1)
        return torch.cat((own_BHTE, position.turn(turned_BHTE, frame)), -1)

    def latents(self, x_BTD: Tensor, frame: Frame, position: PositionModule) -> Tensor:
        """What is kept of the new tokens: [B, T, rank + rope_dim]."""
        part = self.part
        own_BTC, turned_BTE = self.kv_down(x_BTD).split((part.rank, part.rope_dim), -1)
        turned_BTE = position.turn(turned_BTE[:, None], frame)[:, 0]
        return torch.cat((self.kv_norm(own_BTC), turned_BTE), -1)

    def rebuilt(self, q_BHTE: Tensor, latent_BSC: Tensor, frame: Frame, position: PositionModule) -> Tensor:
        """[B, H, T, d_value]: every head meets keys and values of its own, made from the latents."""
        part = self.part
        narrow_BSC, turned_BSE = latent_BSC.split((part.rank, part.rope_dim), -1)
        kv_BHSE = self.kv_up(narrow_BSC).unflatten(-1, (part.n_heads, -1)).transpose(1, 2)
        k_BHSE, v_BHSE = kv_BHSE.split((part.d_head, part.value_width), -1)
        k_BHSE = torch.cat((k_BHSE, turned_BSE[:, None].expand(-1, part.n_heads, -1, -1)), -1)
        rule = Rule(scale=self.scale)
        if not one_width(q_BHTE):
            return attend(q_BHTE, k_BHSE, v_BHSE, frame, position, rule)
        wide = max(part.key_width, part.value_width)
        q_BHTE, k_BHSE, v_BHSE = (widened(x, wide) for x in (q_BHTE, k_BHSE, v_BHSE))
        return attend(q_BHTE, k_BHSE, v_BHSE, frame, position, rule)[..., : part.value_width]

    def absorbed(self, q_BHTE: Tensor, latent_BSC: Tensor, frame: Frame, position: PositionModule) -> Tensor:
        """[B, H, T, d_value] too: queries of all heads, as rows of one, meet the latents themselves."""
        part = self.part
        up_HEC = self.kv_up.weight.unflatten(0, (part.n_heads, -1))
        k_HEC, v_HEC = up_HEC.split((part.d_head, part.value_width), 1)
        own_BHTE, turned_BHTE = q_BHTE.split((part.d_head, part.rope_dim), -1)
        q_BHTC = torch.cat((torch.einsum("bhte,hec->bhtc", own_BHTE, k_HEC), turned_BHTE), -1)
        mask = self.mask(frame, position)
        if mask is not None:
            mask = rows(mask.expand(-1, part.n_heads, -1, -1))
        k_B1SC = latent_BSC[:, None]
        v_B1SC = k_B1SC if one_width(q_BHTC) else k_B1SC[..., : part.rank]
        y_B1TC = F.scaled_dot_product_attention(rows(q_BHTC), k_B1SC, v_B1SC, attn_mask=mask, scale=self.scale)
        y_BTHC = y_B1TC[:, 0, :, : part.rank].unflatten(1, (-1, part.n_heads))
        return torch.einsum("bthc,hec->bhte", y_BTHC, v_HEC)

    def mask(self, frame: Frame, position: PositionModule) -> Tensor | None:
        """Which tokens may be met (bool), or what is added to scores, [B or 1, H or 1, T, S]; None where all may."""
        allowed, bias = frame.allowed(), position.bias(frame, frame.S, self.part.n_heads)
        if bias is None or allowed is None:
            return allowed if bias is None else bias
        return bias.masked_fill(~allowed, float("-inf"))


def rows(x_BHTE: Tensor) -> Tensor:
    """[B, H, T, E] to [B, 1, T H, E]: the heads of a token one after the other."""
    return x_BHTE.transpose(1, 2).flatten(1, 2)[:, None]


def one_width(x: Tensor) -> bool:
    """Whether the kernel that serves `x` wants values as wide as keys: the CPU's, whose fallback holds n x n scores."""
    return x.device.type == "cpu" and torch.backends.cuda.flash_sdp_enabled()


def widened(x: Tensor, width: int) -> Tensor:
    """`x` with zeros up to `width` values: they add nothing to a score, and nothing else to a mix."""
    return F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x


@build.register
def _(part: MLA, d_model: int) -> nn.Module:
    return MLAModule(part, d_model)
