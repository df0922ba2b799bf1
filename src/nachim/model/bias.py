"""Positions that are told by a bias on the scores of queries with keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.build import build
from nachim.model.frame import Frame
from nachim.model.position import PositionModule
from nachim.spec import FIRE, ALiBi

EPS = 1e-6
"""What keeps FIRE's ratio finite at the first token of a document (arXiv 2310.04418, app. D)."""


def distances(frame: Frame, keys: int) -> Tensor:
    """Tokens from each of the last `keys` tokens to each new one, int64 [T, keys]; below 0 for later ones.

    Inside a document it is the distance of their positions, counted there or not.
    """
    index_S = torch.arange(frame.S - keys, frame.S, device=frame.device)
    return torch.arange(frame.start, frame.S, device=frame.device)[:, None] - index_S


class ALiBiModule(PositionModule):
    """Lowers each score by its head's slope times the distance."""

    def __init__(self, part: ALiBi) -> None:
        super().__init__()
        self.part = part

    def bias(self, frame: Frame, keys: int, n_heads: int) -> Tensor:
        """[1, n_heads, T, keys] in fp32, the same for all sequences and layers; rounded [B or 1, n_heads, 1, keys]."""

        def make() -> Tensor:
            slope_H = torch.tensor(slopes(n_heads, self.part.steepness), device=frame.device)
            if self.part.rounded:
                return self.part.factor * rounded(slope_H, frame, keys)
            return -self.part.factor * slope_H[:, None, None] * distances(frame, keys)[None, None]

        return frame.once((self.part, keys, n_heads), make)

    def ramp(self, frame: Frame, keys: int, n_heads: int) -> tuple[Tensor, Tensor] | None:
        """Slopes, and places of keys from the middle one on."""

        def make() -> tuple[Tensor, Tensor]:
            slope_H = self.part.factor * torch.tensor(slopes(n_heads, self.part.steepness), device=frame.device)
            return slope_H, torch.arange(keys, device=frame.device) - 0.5 * keys

        return None if self.part.rounded else frame.once((self.part, keys, n_heads, "ramp"), make)


def rounded(slope_H: Tensor, frame: Frame, keys: int) -> Tensor:
    """Slope times position of each key, all in bfloat16, as fp32 [B or 1, H, 1, keys].

    What is left out, the query's part, is the same for all keys, so that no softmax sees it.
    """
    whole = Frame((frame.B, frame.S), frame.device, 0, frame.documents_BS)
    key_BS = whole.positions.reshape(-1, frame.S)[:, frame.S - keys :].bfloat16()
    return (slope_H.bfloat16()[:, None] * key_BS[:, None]).float()[:, :, None]


def slopes(n_heads: int, steepness: float = 8.0) -> list[float]:
    """The slope of each head: 2^(-steepness h / n) for h = 1 ... n (arXiv 2108.12409, sec. 3).

    For n between powers of two, those of the lower power, then the odd ones of the higher, as many as are needed.
    """
    lower = 1 << (n_heads.bit_length() - 1)
    found = [2 ** (-steepness * head / lower) for head in range(1, lower + 1)]
    return found + [2 ** (-steepness * head / (2 * lower)) for head in range(1, 2 * (n_heads - lower), 2)]


class FIREModule(PositionModule):
    """A small network's bias on the ratio of a distance to the query's position, both on a logarithmic scale."""

    def __init__(self, part: FIRE) -> None:
        super().__init__()
        self.part = part
        self.c = nn.Parameter(torch.empty(()))
        self.length = nn.Parameter(torch.empty(()))  # in units of the part's, so that it moves at the speed of c
        self.inner = nn.Parameter(torch.empty(part.width))
        self.shift = nn.Parameter(torch.empty(part.width))
        self.outer = nn.Parameter(torch.empty(part.n_heads, part.width))

    def bias(self, frame: Frame, keys: int, n_heads: int) -> Tensor:
        """[B, n_heads, T, keys], or [1, ...] where all sequences are one document from the start."""
        ratio_BTS = self.ratio(frame, keys)
        with torch.no_grad():
            bend_W, order_W = (-self.shift / self.inner).nan_to_num().sort()
            piece_BTS = torch.bucketize(ratio_BTS, bend_W)
        line_BTSG = F.embedding(piece_BTS, self.pieces(order_W))
        slope_BHTS, start_BHTS = line_BTSG.movedim(-1, 1).chunk(2, 1)
        return torch.addcmul(start_BHTS, slope_BHTS, ratio_BTS[:, None])

    def pieces(self, order_W: Tensor) -> Tensor:
        """The network of one number is a line between the bends of its units: slopes, then starts, of all heads in each
        piece, [width + 1, 2 n_heads]; `order_W` are the units by their bends.

        A few sums a pair of tokens, where the network's values would be `width` of them.
        """
        piece_P1 = torch.arange(len(order_W) + 1, device=order_W.device)[:, None]
        passed_PW = order_W.argsort() < piece_P1
        on_PW = torch.where(self.inner == 0, self.shift > 0, passed_PW == (self.inner > 0)).to(self.outer.dtype)
        return on_PW @ torch.cat((self.inner * self.outer, self.shift * self.outer)).mT

    def ratio(self, frame: Frame, keys: int) -> Tensor:
        """psi(distance) / psi(max(L, position)), about 0 to 1, [B or 1, T, keys] (arXiv 2310.04418, sec. 3)."""
        dtype = torch.promote_types(self.c.dtype, torch.float32)
        distance_TS, position_BT = frame.once(
            ("fire", keys, dtype), lambda: (distances(frame, keys).abs().to(dtype), within(frame).to(dtype))
        )
        threshold = (self.length.to(dtype) * self.part.length).abs()
        c = self.c.to(dtype).abs()
        near_BT1 = torch.log1p(c * torch.maximum(position_BT, threshold))[..., None]
        return (torch.log1p(c * distance_TS) / (near_BT1 + EPS)).to(self.c.dtype)

    def draw(self, generator: torch.Generator) -> None:
        """Begin with c and L as the part says, and the network as torch draws linear layers: U(+-1/sqrt(fan_in))."""
        nn.init.constant_(self.c, self.part.c)
        nn.init.ones_(self.length)
        for weight, fan_in in ((self.inner, 1), (self.shift, 1), (self.outer, self.part.width)):
            nn.init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5, generator=generator)


def within(frame: Frame) -> Tensor:
    """How many tokens of its document stand before each new one: [1, T], or [B, T] where documents are told."""
    if frame.documents_BS is None:
        return torch.arange(frame.start, frame.S, device=frame.device)[None]
    return Frame((frame.B, frame.T), frame.device, frame.start, frame.documents_BS).positions


@build.register
def _(part: ALiBi, d_model: int) -> nn.Module:
    return ALiBiModule(part)


@build.register
def _(part: FIRE, d_model: int) -> nn.Module:
    return FIREModule(part)
