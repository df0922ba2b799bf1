"""Attention in segments, with a compressive memory of the segments before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.block import Memory
from nachim.model.build import build
from nachim.model.chunks import wide
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import InfiniAttention


class InfiniAttentionModule(nn.Module):
    """g * what the memory says + (1 - g) * softmax attention in the segment, g = sigmoid(gate) (2404.07143, eq. 5).

    The memory of a head is a matrix [E, E + 1], its last column the normaliser z: values are written with a 1 behind
    them. It stands still within a segment, and what the segment writes is gathered beside it, so that reading token by
    token gives what reading by segments gives.
    """

    def __init__(self, part: InfiniAttention, d_model: int) -> None:
        super().__init__()
        self.part = part
        self.rows = tuple(heads * part.d_head for heads in (part.n_heads, part.n_kv_heads, part.n_kv_heads))
        self.qkv = nn.Linear(d_model, sum(self.rows), bias=False)
        self.gate = nn.Parameter(torch.empty(part.n_heads))
        self.out = nn.Linear(self.rows[0], d_model, bias=False)

    def draw(self, generator: torch.Generator) -> None:
        """Begin with memory and attention in equal shares."""
        nn.init.zeros_(self.gate)

    def forward(self, x_BTD: Tensor, frame: Frame, position: PositionModule, memory: Memory | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]; keys and values of a segment, and two [B, K, E, E + 1], stay in `memory`."""
        places = frame.once(("places", self.part.segment), lambda: Places(frame, self.part.segment))
        q_BTHE, k_BTKE, v_BTKE = (
            piece.unflatten(-1, (-1, self.part.d_head)) for piece in self.qkv(x_BTD).split(self.rows, -1)
        )
        asked_BTHE, keys_BTKE = F.elu(wide(q_BTHE)) + 1, F.elu(wide(k_BTKE)) + 1
        told_BTKF = F.pad(wide(v_BTKE), (0, 1), value=1.0)
        q_BTHE, k_BTKE = (position.turn(x.transpose(1, 2), frame).transpose(1, 2) for x in (q_BTHE, k_BTKE))
        if memory is not None:
            k_BTKE, v_BTKE = self._with_past(k_BTKE, v_BTKE, memory)
        attend = _attend_last if frame.T == 1 else _attend
        near_BTHE = attend(q_BTHE, k_BTKE, v_BTKE, places)
        held_BKEF, added_BKEF = places.promoted(*self._memories(keys_BTKE, memory))
        far_BTHE, held_BKEF, added_BKEF = self._remember(
            asked_BTHE, keys_BTKE, told_BTKF, held_BKEF, added_BKEF, places
        )
        if memory is not None:
            memory["held"], memory["added"] = held_BKEF, added_BKEF
        gate_H1 = self.gate.to(x_BTD.dtype).sigmoid()[:, None]
        return self.out(torch.lerp(near_BTHE, far_BTHE.to(x_BTD.dtype), gate_H1).flatten(2))

    def _with_past(self, k_BTKE: Tensor, v_BTKE: Tensor, memory: Memory) -> tuple[Tensor, ...]:
        """Keys and values of the tokens kept and the new ones; those of the last segment's length are kept."""
        new = {"keys": k_BTKE, "values": v_BTKE}
        if "keys" in memory:
            new = {name: torch.cat((memory[name], x_BTKE), 1) for name, x_BTKE in new.items()}
        memory.update({name: x_BSKE[:, -self.part.segment :].clone() for name, x_BSKE in new.items()})
        return tuple(new.values())

    def _memories(self, keys_BTKE: Tensor, memory: Memory | None) -> tuple[Tensor, Tensor]:
        """What is remembered of whole segments, and what the present one has written so far."""
        if memory and "held" in memory:
            return memory["held"], memory["added"]
        B, _, K, E = keys_BTKE.shape
        nothing_BKEF = keys_BTKE.new_zeros(B, K, E, E + 1)
        return nothing_BKEF, nothing_BKEF

    def _remember(
        self,
        asked_BTHE: Tensor,
        keys_BTKE: Tensor,
        told_BTKF: Tensor,
        held_BKEF: Tensor,
        added_BKEF: Tensor,
        places: Places,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the memory says to each token [B, T, H, E], and both memories after the last token."""
        asked_BNLHE, keys_BNLKE, told_BNLKF = (places.lay(x) for x in (asked_BTHE, keys_BTKE, told_BTKF))
        keys_BKNLE, told_BKNLF = (x.permute(0, 3, 1, 2, 4).contiguous() for x in (keys_BNLKE, told_BNLKF))
        before, written = [], []
        for n, (keys_BKLE, told_BKLF) in enumerate(zip(keys_BKNLE.unbind(2), told_BKNLF.unbind(2), strict=True)):
            held_BKEF = places.kept(held_BKEF, n)
            if self.part.update == "delta":
                told_BKLF = told_BKLF - F.pad(_said(keys_BKLE @ held_BKEF), (0, 1))
            before.append(held_BKEF)
            written.append(keys_BKLE.mT @ told_BKLF + (added_BKEF if n == 0 else 0))
            held_BKEF = held_BKEF + written[-1]
        before_BKNEF, written_BKNEF = torch.stack(before, 2), torch.stack(written, 2)
        asked_BNLKGE = asked_BNLHE.unflatten(3, (self.part.n_kv_heads, -1))
        said_BNLKGE = _said(torch.einsum("bnlkge,bknef->bnlkgf", asked_BNLKGE, before_BKNEF))
        return places.pick(said_BNLKGE.flatten(3, 4)), *map(places.last, (before_BKNEF, written_BKNEF))


def _said(read: Tensor) -> Tensor:
    """What was read of a memory [..., E + 1] over its normaliser; nothing where nothing is remembered (eq. 3)."""
    value, normaliser = read[..., :-1], read[..., -1:]
    return value / torch.where(normaliser > 0, normaliser, 1.0)


def _attend(q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, places: Places) -> Tensor:
    """Causal attention of the new tokens to their own segments, [B, T, H, E]."""
    grids = (places.lay(x).flatten(0, 1).transpose(1, 2) for x in (q_BTHE, k_BSKE, v_BSKE))
    grouped = q_BTHE.shape[2] != k_BSKE.shape[2]
    y_RHLE = F.scaled_dot_product_attention(*grids, is_causal=True, enable_gqa=grouped)
    return places.pick(y_RHLE.transpose(1, 2).unflatten(0, (len(q_BTHE), -1)))


def _attend_last(q_B1HE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, places: Places) -> Tensor:
    """Attention of one new token to its segment, [B, 1, H, E]."""
    k_BSKE, v_BSKE = (x_BSKE[:, -places.reach :] for x_BSKE in (k_BSKE, v_BSKE))
    grouped = q_B1HE.shape[2] != k_BSKE.shape[2]
    heads = (x.transpose(1, 2) for x in (q_B1HE, k_BSKE, v_BSKE))
    near = places.near(k_BSKE.shape[1])
    return F.scaled_dot_product_attention(*heads, attn_mask=near, enable_gqa=grouped).transpose(1, 2)


class Places:
    """Where the new tokens stand in segments: a grid of N segments of L places a sequence, in which each has its own.

    The first segment is the one that the first new token stands in, its earlier tokens included. Without documents all
    sequences stand alike; with them, segments begin again with each document.
    """

    def __init__(self, frame: Frame, segment: int) -> None:
        self.T = frame.T
        self.fresh_BN: Tensor | None = None
        """Segments that begin a document: what is remembered is not of it."""
        if frame.documents_BS is None:
            self.begun = frame.start % segment
            self.reach = self.begun + 1
            self.N = -(-(self.begun + frame.T) // segment)
            self.L = segment if self.N > 1 else self.begun + frame.T
        else:
            self.reach = segment
            self._separate(frame, segment)

    def _separate(self, frame: Frame, segment: int) -> None:
        documents_BS, index_S = frame.documents_BS, torch.arange(frame.S, device=frame.device)
        same_BS = documents_BS[:, 1:] == documents_BS[:, :-1]
        begin_BS = torch.where(F.pad(~same_BS, (1, 0), value=True), index_S, 0).cummax(1).values
        place_BT = ((index_S - begin_BS) % segment)[:, frame.start :]
        opens_BT = place_BT == 0
        number_BT = opens_BT.cumsum(1) - opens_BT[:, :1].long()
        self.begun_B = place_BT[:, 0]
        self.ends_B = number_BT[:, -1]
        self.N = int(self.ends_B.max()) + 1
        self.L = segment if self.N > 1 else int(place_BT.max()) + 1
        self.slot_BT = number_BT * self.L + place_BT
        begins_BT = frame.begins_BT
        fresh_BN = torch.zeros(len(begins_BT), self.N, dtype=torch.int64, device=frame.device)
        self.fresh_BN = fresh_BN.scatter_reduce(1, number_BT, begins_BT.long(), "amax").bool()

    def near(self, keys: int) -> Tensor | None:
        """Which of the last `keys` tokens stand in the segment of the one new token: bool [B, 1, 1, keys]."""
        if self.fresh_BN is None:
            return None
        distance_S = torch.arange(keys - 1, -1, -1, device=self.begun_B.device)
        return (distance_S <= self.begun_B[:, None])[:, None, None]

    def promoted(self, held_BKEF: Tensor, added_BKEF: Tensor) -> tuple[Tensor, Tensor]:
        """Both memories as the first new token finds them: where it opens a segment, the last one is held now."""
        if self.fresh_BN is None:
            return (held_BKEF, added_BKEF) if self.begun else (held_BKEF + added_BKEF, torch.zeros_like(added_BKEF))
        opens_B111 = (self.begun_B == 0)[:, None, None, None]
        return torch.where(opens_B111, held_BKEF + added_BKEF, held_BKEF), added_BKEF * ~opens_B111

    def kept(self, held_BKEF: Tensor, n: int) -> Tensor:
        """The memory as segment `n` finds it: nothing where a document begins with it."""
        return held_BKEF if self.fresh_BN is None else held_BKEF * ~self.fresh_BN[:, n, None, None, None]

    def last(self, x_BKNEF: Tensor) -> Tensor:
        """Of each sequence what belongs to the segment of its last token."""
        if self.fresh_BN is None:
            return x_BKNEF[:, :, -1]
        return x_BKNEF[torch.arange(len(x_BKNEF), device=x_BKNEF.device), :, self.ends_B]

    def lay(self, x_BSHE: Tensor) -> Tensor:
        """The new tokens, and earlier ones of their segment that come before them, on the grid [B, N, L, H, E]."""
        if self.T == 1:
            return x_BSHE[:, None]
        B, S = x_BSHE.shape[:2]
        past, places = S - self.T, self.N * self.L
        if self.fresh_BN is None:
            x_BSHE = x_BSHE[:, max(0, past - self.begun) :]
            left = self.begun + self.T - x_BSHE.shape[1]
            right = places - self.begun - self.T
            if left or right:
                x_BSHE = F.pad(x_BSHE, (0, 0, 0, 0, left, right))
            return x_BSHE.unflatten(1, (self.N, self.L))
        slot_BS = self.slot_BT
        if past:
            before_BP = self.begun_B[:, None] - torch.arange(past, 0, -1, device=x_BSHE.device)
            slot_BS = torch.cat((torch.where(before_BP < 0, places, before_BP), slot_BS), 1)  # there it is dropped
        row_B1 = torch.arange(B, device=x_BSHE.device)[:, None] * (places + 1)
        grid = x_BSHE.new_zeros(B * (places + 1), *x_BSHE.shape[2:])
        grid = grid.index_copy(0, (row_B1 + slot_BS).flatten(), x_BSHE.flatten(0, 1))
        return grid.unflatten(0, (B, -1))[:, :-1].unflatten(1, (self.N, self.L))

    def pick(self, y_BNLHE: Tensor) -> Tensor:
        """The new tokens of a grid, [B, T, H, E]."""
        if self.T == 1:
            return y_BNLHE[:, 0]
        y_BPHE = y_BNLHE.flatten(1, 2)
        if self.fresh_BN is None:
            return y_BPHE[:, self.begun : self.begun + self.T]
        row_B1 = torch.arange(len(y_BPHE), device=y_BPHE.device)[:, None] * y_BPHE.shape[1]
        return y_BPHE.flatten(0, 1).index_select(0, (row_B1 + self.slot_BT).flatten()).unflatten(0, (-1, self.T))


@build.register
def _(part: InfiniAttention, d_model: int) -> nn.Module:
    return InfiniAttentionModule(part, d_model)
