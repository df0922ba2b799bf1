"""Sequences cut into chunks: how mixers with a state train in time linear in the length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nachim.model.frame import Frame


def in_chunks(frame: Frame, most: int, block: int = 1) -> Chunks:
    """The new tokens of `frame` in as few equal chunks as `most` tokens allow, made once for all layers.

    A chunk of more than `block` tokens is filled up to whole blocks.
    """
    size = -(-frame.T // -(-frame.T // most))
    if size > block:
        size = -(-size // block) * block
    return frame.once(("chunks", size), lambda: Chunks(frame, size))


class Chunks:
    """The T new tokens in N chunks of C, the last filled up with nothing, and what documents forbid in and across them.

    A document may begin anywhere. Inside a chunk a token meets its own document; from before the chunk it reads the
    state only while no document has begun; what it writes outlives the chunk only if none begins after it.
    """

    def __init__(self, frame: Frame, size: int) -> None:
        self.T, self.C = frame.T, size
        self.N = -(-frame.T // size)
        self.met = torch.ones(size, size, dtype=torch.bool, device=frame.device).tril()
        """Which tokens of its chunk, itself too, a token meets: [C, C] or [B, 1, N, C, C]."""
        self._reads: Tensor | None = None
        begins_BT = frame.begins_BT
        if begins_BT is not None:
            self._separate(begins_BT)

    def _separate(self, begins_BT: Tensor) -> None:
        number_BT = begins_BT.cumsum(1)
        last_B1 = number_BT[:, -1:]
        number_BT = torch.cat((number_BT, last_B1.expand(-1, self.N * self.C - self.T)), 1)
        number_BNC = number_BT.unflatten(1, (self.N, self.C))[:, None]
        after_BN = number_BNC[..., -1]
        before_BN = F.pad(after_BN[..., :-1], (1, 0))
        self.met = self.met & (number_BNC[..., :, None] == number_BNC[..., None, :])
        self._reads = number_BNC == before_BN[..., None]
        self._writes = number_BNC == after_BN[..., None]
        self._carries = before_BN == after_BN

    def split(self, x_BHT: Tensor) -> Tensor:
        """[B, H, T, ...] to [B, H, N, C, ...], filled up with zeros."""
        missing = self.N * self.C - self.T
        if missing:
            x_BHT = F.pad(x_BHT, (0, 0) * (x_BHT.ndim - 3) + (0, missing))
        return x_BHT.unflatten(2, (self.N, self.C)).contiguous()

    def join(self, y_BHNC: Tensor) -> Tensor:
        """What `split` cut, whole again."""
        return y_BHNC.flatten(2, 3)[:, :, : self.T]

    def kept(self, passed_BHNC1: Tensor) -> Tensor:
        """What of a token is left at each later one of its chunk and document, 0 elsewhere: [B or 1, H, N, C, C].

        `passed_BHNC1` is the logarithm of the decay from the chunk's beginning to each token.
        """
        return (passed_BHNC1 - passed_BHNC1.mT).masked_fill(~self.met, float("-inf")).exp()

    def read(self, factor_BHNC: Tensor) -> Tensor:
        """Factors of what tokens read of the state before their chunk, 0 where a document has begun since."""
        return factor_BHNC if self._reads is None else factor_BHNC * self._reads[..., None]

    def written(self, factor_BHNC: Tensor) -> Tensor:
        """Factors of what tokens write into the state after their chunk, 0 where a document begins before its end."""
        return factor_BHNC if self._reads is None else factor_BHNC * self._writes[..., None]

    def carried(self, factor_BHN: Tensor) -> Tensor:
        """Factors of the state from chunk to chunk, [B, H, N, 1 or E, 1], 0 where a document begins between."""
        return factor_BHN if self._reads is None else factor_BHN * self._carries[..., None, None]


def states(written_BHNEF: Tensor, carry_BHNE1: Tensor, state_BHEF: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk [B, H, N, E, F] and after the last: S_n = carry_n S_(n-1) + written_n."""
    found = [state_BHEF]
    for written_BHEF, carry_BHE1 in zip(written_BHNEF.unbind(2), carry_BHNE1.unbind(2), strict=True):
        found.append(torch.addcmul(written_BHEF, carry_BHE1, found[-1]))
    return torch.stack(found[:-1], 2), found[-1]


def wide(x: Tensor) -> Tensor:
    """In at least fp32: states add up over thousands of tokens, which fewer digits would lose."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
