"""Pipeline parallelism: which layers stand on which stage, and how many micro-batches a stage holds at once."""

from __future__ import annotations

import functools
import itertools
from collections import Counter

from nachim.budget.layout import Layout
from nachim.spec import Decoder
from nachim.spec.model import Block


def stage_blocks(model: Decoder, layout: Layout) -> tuple[dict[Block, int], ...]:
    """How many layers of each kind stand on each stage, first stage first.

    Layers are dealt out in order, as evenly as whole layers allow, to `pp` x `virtual` chunks; chunk c stands on stage
    c mod pp (arXiv 2104.04473, sec. 2.2.2). Blocks of multi-token prediction stand on the last stage, beside the head
    that they share. Raises UserError when there are fewer layers than chunks.
    """
    parts = layout.pp * layout.virtual
    if parts > model.n_layers:
        layout.refuse("pp", f"x virtual is {parts}; the model has only {model.n_layers} layers to deal out")
    return _dealt(model, layout.pp, layout.virtual)


@functools.lru_cache(maxsize=1024)
def _dealt(model: Decoder, pp: int, virtual: int) -> tuple[dict[Block, int], ...]:
    edges = [chunk * model.n_layers // (pp * virtual) for chunk in range(pp * virtual + 1)]
    chunks = [Counter(model.blocks[start:end]) for start, end in itertools.pairwise(edges)]
    chunks[-1].update(model.trained_blocks[model.n_layers :])
    return tuple(sum(chunks[stage::pp], Counter()) for stage in range(pp))


def in_flight(layout: Layout, stage: int, micro_batches: int) -> float:
    """Micro-batches whose activations stage number `stage`, from 0, holds at its fullest, in units of the whole stage.

    GPipe holds all of them; 1F1B at most as many as stages follow, itself included (arXiv 2104.04473, sec. 2.2.1).
    Interleaving holds chunks: those of its warm-up and the one in work, on the first stage 1 + (p - 1) / (p v) times
    what 1F1B holds (arXiv 2205.05198, sec. 4.2.3). The zero-bubble schedule is ZB-H1: every stage holds as many as
    1F1B's first, because what a delayed weight gradient needs is kept until then (arXiv 2401.10241, sec. 2.1).
    """
    stages, virtual = layout.pp, layout.virtual
    if stages == 1:
        return 1
    if layout.schedule == "gpipe":
        return micro_batches
    if layout.schedule == "zero-bubble":
        return min(micro_batches, stages)
    if layout.schedule == "interleaved":
        warm_up = 2 * (stages - stage - 1) + (virtual - 1) * stages
        return min(micro_batches * virtual, warm_up + 1) / virtual
    return min(micro_batches, stages - stage)
