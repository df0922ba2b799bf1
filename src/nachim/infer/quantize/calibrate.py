"""What each matrix of a model reads: its blocks are passed through one by one, those before them already changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nachim.model import DecoderModule
from nachim.model.frame import Frame
from nachim.model.moe import Stack
from nachim.spec import UserError

ROWS = 8
"""Sequences that pass through a block at once."""

Progress = Callable[[int, int], None]
"""Called with (blocks done, blocks in all)."""


@dataclass(eq=False)
class Seen:
    """What a matrix read: sums over `rows` tokens of x x^T [I, I] and of |x| [I], both in fp64."""

    moments_II: Tensor
    magnitude_I: Tensor
    rows: int = 0

    @classmethod
    def none(cls, inputs: int, device: torch.device | None = None) -> Seen:
        """Nothing yet, of `inputs` channels."""
        zeros = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        return cls(zeros, zeros[0].clone())

    def copy(self) -> Seen:
        """The same, for whoever changes it."""
        return Seen(self.moments_II.clone(), self.magnitude_I.clone(), self.rows)

    def add(self, x_RI: Tensor) -> None:
        """Take in the inputs of R tokens. Their product is taken in fp32; what adds up over batches is not."""
        x_RI = x_RI.float()
        self.moments_II += x_RI.mT @ x_RI
        self.magnitude_I += x_RI.abs().sum(0)
        self.rows += len(x_RI)


Sight = dict[str, list[Seen]]
"""What each matrix of a block read, by its module's name in the block: once, or once for every expert of a stack."""

Change = Callable[[int, nn.Module, Sight], None]
"""Called with the number of a block, the block and what its matrices read; changes the block's weights in place."""


@dataclass(eq=False)
class _Watched:
    """One module's inputs, as a hook hears of them."""

    module: nn.Module
    seen: list[Seen] = field(default_factory=list)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        if not self.seen:
            experts = len(module.weight) if isinstance(module, Stack) else 1
            self.seen = [Seen.none(x.shape[-1], x.device) for _ in range(experts)]
        parts = x.split(inputs[1].tolist()) if isinstance(module, Stack) else [x.flatten(0, -2)]
        for seen, x_RI in zip(self.seen, parts, strict=True):
            if len(x_RI):
                seen.add(x_RI)


@contextmanager
def watching(block: nn.Module) -> Iterator[Sight]:
    """Within it, what the matrices of `block` read is gathered; the dictionary is filled at the end.

    A matrix that is not called as a module, such as a router's, is not in it.
    """
    watched = {name: _Watched(one) for name, one in block.named_modules() if isinstance(one, nn.Linear | Stack)}
    hooks = [one.module.register_forward_pre_hook(one) for one in watched.values()]
    sight: Sight = {}
    try:
        yield sight
    finally:
        for hook in hooks:
            hook.remove()
        sight |= {name: one.seen for name, one in watched.items() if one.seen}


@torch.no_grad()
def calibrate(
    model: DecoderModule, ids_NT: npt.NDArray[np.int64], change: Change, progress: Progress | None = None
) -> None:
    """Pass sequences [N, T] through `model` block by block; each block is given to `change` with what it read.

    What later blocks read comes from blocks as `change` left them, so that they make up for what was lost before
    (arXiv 2210.17323, sec. 4). One block's second moments are held at a time, and the stream of all tokens, N T D
    values. Raises UserError where a matrix reads what is not finite.
    """
    device = model.embedding.weight.device
    batches = torch.from_numpy(np.ascontiguousarray(ids_NT)).to(device).split(ROWS)
    streams = [model.embed(ids_BT, _frame(ids_BT)) for ids_BT in batches]
    for layer, block in enumerate(model.blocks):
        with watching(block) as sight:
            for x_BTD, ids_BT in zip(streams, batches, strict=True):
                block(x_BTD, _frame(ids_BT))
        _hold_finite(layer, sight)
        change(layer, block, sight)
        for number, ids_BT in enumerate(batches):
            streams[number] = block(streams[number], _frame(ids_BT))
        if progress is not None:
            progress(layer + 1, len(model.blocks))


def _frame(ids_BT: Tensor) -> Frame:
    return Frame(tuple(ids_BT.shape), ids_BT.device)


def _hold_finite(layer: int, sight: Sight) -> None:
    for name, each in sight.items():
        if not all(torch.isfinite(seen.magnitude_I).all() for seen in each):
            raise UserError(f"blocks.{layer}.{name} reads values that are not finite: the model cannot be calibrated")
