"""Mixture of depths: blocks that work on some tokens only, and let the others pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nachim.model.block import BlockModule, Memory
from nachim.model.cache import Cache
from nachim.model.frame import Frame
from nachim.spec import Decoder
from nachim.spec.model import Block

ROWS = "rows"
"""Where a layer keeps what its sequences remember, each on its own."""


class Rows:
    """One cache a sequence: in one layer, sequences differ in how many of their tokens were worked on.

    It stands among the tensors of a layer's memory and answers to what is asked of them there.
    """

    def __init__(self, caches: list[Cache]) -> None:
        self.caches = caches

    @property
    def shape(self) -> tuple[int]:
        """The number of sequences."""
        return (len(self.caches),)

    @property
    def nbytes(self) -> int:
        """Bytes kept for all sequences."""
        return sum(cache.nbytes for cache in self.caches)

    def __getitem__(self, rows: Tensor) -> Rows:
        """Those of the sequences `rows` (int64 indices), copied."""
        return Rows([self.caches[row].select(torch.tensor([0], device=rows.device)) for row in rows.tolist()])


class RoutedBlock(BlockModule):
    """A block that works on a share of the tokens: x + r (block(x) - x) for those, x for the others.

    r is the router's score of a token (arXiv 2404.02258, eq. 1). Within the block a token meets the tokens worked on:
    rotary and added positions are those of the whole sequence, windows and biases on scores count tokens worked on. A
    pass that trains takes the best of each sequence, padding last, and leaves the loss that makes scores above 0 theirs
    in `auxiliary`; any other pass goes by that rule, which looks at no later token.
    """

    def __init__(self, spec: Decoder, block: Block) -> None:
        super().__init__(spec, block)
        self.depth = spec.depth
        self.router = nn.Linear(spec.d_model, 1, bias=False)
        self.auxiliary: Tensor | None = None

    def forward(self, x_BTD: Tensor, frame: Frame, memory: Memory | None = None) -> Tensor:
        """The stream after this block; what must be remembered goes into `memory`."""
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        score_BT = F.linear(x_BTD.to(wide), self.router.weight.to(wide))[..., 0]
        self.auxiliary = None
        if self.training and torch.is_grad_enabled() and memory is None:
            return self._best(x_BTD, frame, score_BT)
        caches: list[Cache | None] = [None] * frame.B
        if memory is not None:
            caches = memory.setdefault(ROWS, Rows([Cache(1) for _ in range(frame.B)])).caches
        done = [self._above_0(x_BTD[row], frame, row, score_BT[row], cache) for row, cache in enumerate(caches)]
        return torch.stack(done)

    def _best(self, x_BTD: Tensor, frame: Frame, score_BT: Tensor) -> Tensor:
        """The stream after the best tokens of every sequence were worked on."""
        ranked_BT = score_BT.detach()
        if frame.documents_BS is not None:
            ranked_BT = ranked_BT.masked_fill(frame.documents_BS < 0, float("-inf"))
        count = max(1, round(self.depth.capacity * frame.T))
        index_BC = ranked_BT.topk(count, 1).indices.sort(1).values
        chosen_BT = torch.zeros_like(score_BT).scatter(1, index_BC, 1.0)
        self.auxiliary = self.depth.causal_loss * F.binary_cross_entropy_with_logits(score_BT, chosen_BT)
        place_BCD = index_BC[..., None].expand(-1, -1, x_BTD.shape[-1])
        x_BCD = x_BTD.gather(1, place_BCD)
        y_BCD = self._worked(x_BCD, inner(frame, slice(None), index_BC), score_BT.gather(1, index_BC), None)
        return x_BTD.scatter(1, place_BCD, y_BCD)

    def _above_0(self, x_TD: Tensor, frame: Frame, row: int, score_T: Tensor, cache: Cache | None) -> Tensor:
        """One sequence of the stream after its tokens of a score above 0 were worked on."""
        index_C = (score_T > 0).nonzero()[:, 0]
        if not len(index_C):
            return x_TD
        here = inner(frame, slice(row, row + 1), index_C[None], cache)
        memory = None if cache is None else cache.layers[0]
        y_1CD = self._worked(x_TD[None, index_C], here, score_T[None, index_C], memory)
        return x_TD.index_copy(0, index_C, y_1CD[0])

    def _worked(self, x_BCD: Tensor, frame: Frame, score_BC: Tensor, memory: Memory | None) -> Tensor:
        y_BCD = super().forward(x_BCD, frame, memory)
        return x_BCD + score_BC[..., None].to(x_BCD.dtype) * (y_BCD - x_BCD)


def inner(frame: Frame, rows: slice, index_BC: Tensor, cache: Cache | None = None) -> Frame:
    """The frame of the new tokens `index_BC` of the sequences `rows` alone, after those that `cache` holds."""
    positions = frame.positions.expand(frame.B, -1) if frame.positions.ndim == 1 else frame.positions
    positions = positions[..., rows, :]
    positions = positions.gather(-1, index_BC.expand(*positions.shape[:-1], -1))
    documents_BC, start = None, 0
    if frame.documents_BS is not None:
        documents_BC = frame.documents_BS[rows, frame.start :].gather(1, index_BC)
    if cache is not None:
        start = cache.length
        documents_BC = cache.extend(documents_BC, tuple(index_BC.shape), frame.device)
    return Frame(tuple(index_BC.shape), frame.device, start, documents_BC, positions)


def block_of(spec: Decoder, block: Block) -> BlockModule:
    """The module of one layer of `spec`."""
    return RoutedBlock(spec, block) if block.share < 1 else BlockModule(spec, block)
