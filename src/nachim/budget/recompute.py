"""Which blocks are made again in the backward pass, so that what they keep fits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from nachim.budget.activations import Kept, kept
from nachim.budget.layout import Job, Layout
from nachim.spec.activations import Activations, Recompute
from nachim.spec.model import Block, Decoder

GRADES: tuple[Recompute, ...] = ("none", "selective", "full")
CHEAP_FLOPS = 50
"""FLOP that take the time of making one cheap value again: it is read and written while a core or a GPU with tens of
FLOP a byte could multiply. Only the order of grades depends on it."""


def work_again(block: Block, model: Decoder, seq_len: int, grade: Recompute) -> float:
    """FLOP a token that `grade` adds to a step in `block`; cheap values count as `CHEAP_FLOPS` each."""
    if grade == "none":
        return 0.0
    saved = [layer.saved(model.d_model) for layer in block.layers]
    cheap = CHEAP_FLOPS * sum(one.cheap_whole + one.cheap_split for one in saved)
    if grade == "selective":
        return block.share * cheap
    products = 2 * sum(layer.matmul_params(model.d_model) for layer in block.layers)
    mixing = block.mixer.mixing_flops(max(1.0, block.share * seq_len), causal=True)
    return block.share * (cheap + products + mixing)


def grades(
    job: Job, layout: Layout, activations: Activations, kind: str, blocks: Sequence[Block]
) -> tuple[Recompute, ...]:
    """What of each of `blocks`, first to last, is made again.

    With `keep_bytes` grades are raised where a byte costs least, and lowered again, the dearest first, where that still
    fits. Of equal blocks the first are made again: the backward pass ends with them, when the others' values are gone.
    Raises UserError, with the fewest bytes that blocks can keep, when they are not few enough.
    """
    if activations.keep_bytes is None:
        return (activations.recompute,) * len(blocks)
    kinds = list(dict.fromkeys(blocks))
    size = {(one, grade): kept(one, job, layout, kind, grade).stored for one in kinds for grade in GRADES}
    cost = {(one, grade): work_again(one, job.model, job.seq_len, grade) for one in kinds for grade in GRADES}
    least = sum(min(size[one, grade] for grade in GRADES) for one in blocks)
    if least > activations.keep_bytes:
        activations.refuse("keep_bytes", f"is {activations.keep_bytes}; with all made again blocks keep {least:.0f}")
    chosen = _Choice(list(blocks), size, cost)
    chosen.raise_to(activations.keep_bytes)
    chosen.lower_within(activations.keep_bytes)
    return chosen.ordered()


@dataclass
class _Choice:
    """A grade for each of `blocks`, by the bytes and the work of each kind in each grade."""

    blocks: list[Block]
    size: dict[tuple[Block, Recompute], float]
    cost: dict[tuple[Block, Recompute], float]

    def __post_init__(self) -> None:
        self.grade: list[Recompute] = ["none"] * len(self.blocks)

    @property
    def held(self) -> float:
        """Bytes of all blocks."""
        return sum(self.size[pair] for pair in zip(self.blocks, self.grade, strict=True))

    def _changes(self, sign: int) -> list[tuple[float, float, int, Recompute]]:
        """Every change of one block that saves (`sign` 1) or takes (-1) bytes: work for a byte, work, block, grade."""
        found = []
        for index, (block, now) in enumerate(zip(self.blocks, self.grade, strict=True)):
            for grade in GRADES:
                saved = sign * (self.size[block, now] - self.size[block, grade])
                work = sign * (self.cost[block, grade] - self.cost[block, now])
                if saved > 0 and work > 0:
                    found.append((work / saved, work, index, grade))
        return found

    def raise_to(self, most: float) -> None:
        """Give up bytes, those of least work first, until `most` are left."""
        while self.held > most:
            _, _, index, grade = min(self._changes(1))
            self.grade[index] = grade

    def lower_within(self, most: float) -> None:
        """Take back what need not have been given up, that of most work first."""
        while True:
            fitting = []
            for change in self._changes(-1):
                _, work, index, grade = change
                block = self.blocks[index]
                if self.held - self.size[block, self.grade[index]] + self.size[block, grade] <= most:
                    fitting.append((work, index, grade))
            if not fitting:
                return
            _, index, grade = max(fitting)
            self.grade[index] = grade

    def ordered(self) -> tuple[Recompute, ...]:
        """The grades, of equal blocks the highest first."""
        left = {
            block: sorted((g for b, g in zip(self.blocks, self.grade, strict=True) if b == block), key=GRADES.index)
            for block in self.blocks
        }
        return tuple(left[block].pop() for block in self.blocks)


def groups(chosen: Sequence[Recompute], every: int) -> list[tuple[Recompute, slice]]:
    """Blocks that are passed through together, as slices with their grade: of those made again in full `every`."""
    found: list[tuple[Recompute, slice]] = []
    begin = 0
    for grade, run in itertools.groupby(chosen):
        end = begin + len(list(run))
        step = every if grade == "full" else 1
        found += [(grade, slice(first, min(first + step, end))) for first in range(begin, end, step)]
        begin = end
    return found


def passages(model: Decoder, chosen: Sequence[Recompute], every: int) -> list[slice]:
    """The blocks of a training step as they are passed through together: a module for further tokens by itself."""
    found = [part for _, part in groups(chosen[: model.n_layers], every)]
    return found + [slice(one, one + 1) for one in range(model.n_layers, len(chosen))]


def fullest(layers: Sequence[Kept], together: Sequence[slice]) -> tuple[float, float]:
    """Where the backward pass through `layers`, first to last, holds most: bytes kept by then, and those beside them.

    Of layers passed through `together` one input is kept, and what the others kept is made again with it.
    """
    found, before = (0.0, 0.0), 0.0
    for part in together:
        group = layers[part]
        again = sum(layer.remade for layer in group) + sum(layer.stored for layer in group[1:])
        before += group[0].stored
        found = max(found, (before, max(layer.working for layer in group) + again), key=sum)
    return found
