"""Bytes of weights, gradients and optimizer state on one device, and of what an update makes on the way."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from nachim.budget.layout import Job, Layout
from nachim.spec import AdamW8, Decoder, Matrix, MoE
from nachim.spec.model import Block

VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp8": 2}
"""Weights and activations. In fp8 only the operands of a multiplication are, as it runs: torchao's Float8Linear keeps
its input for the backward pass, and its weight, in the precision they came in."""
ADAMW8_VALUE = 22
"""Bytes that 8-bit AdamW makes for a value of a chunk: two moments, its share of the scale, its code on the way. Beside
them stand 1 MB of tables, which are not counted."""


@dataclass(frozen=True)
class Held:
    """Parameters that one device holds before ZeRO cuts them, by how they are treated.

    `matrices` stand in blocks, `experts` too but are dealt out, `tables` are embedding, positions and head, `vectors`
    all else. `unit` is the most that is gathered or reduced at once: one block or one table.
    """

    matrices: float = 0.0
    experts: float = 0.0
    vectors: float = 0.0
    tables: float = 0.0
    unit: float = 0.0

    @property
    def dense(self) -> float:
        """All that data parallelism copies to every replica."""
        return self.matrices + self.vectors + self.tables

    @property
    def total(self) -> float:
        """All of them."""
        return self.dense + self.experts


@functools.lru_cache(maxsize=1024)
def held_by_block(block: Block, model: Decoder, tp: int, ep: int) -> Held:
    """Parameters of one layer on one device: tensor parallelism cuts its matrices, vectors are on all."""
    dense = experts = 0.0
    for layer in block.layers:
        for matrix in layer.matrices(model.d_model):
            if matrix.expert:
                experts += matrix.params_on_device(tp, ep)
            else:
                dense += matrix.params_on_device(tp)
    router = model.d_model if block.share < 1 else 0
    vectors = sum(layer.vectors(model.d_model) for layer in block.layers) + model.norm_params(block) + router
    return Held(dense, experts, vectors, unit=dense + experts + vectors)


def held_by_stage(model: Decoder, blocks: dict[Block, int], layout: Layout, first: bool, last: bool) -> Held:
    """Parameters of a pipeline stage on one device; vocabulary tables are cut by tensor parallelism.

    Multi-token prediction reads the embedding again, on the last stage, which holds a copy where it is not the first.
    """
    layers = [(held_by_block(block, model, layout.tp, layout.ep), times) for block, times in blocks.items()]
    table = model.vocab_size * model.d_model / layout.tp
    further = last and model.mtp is not None
    embeds = first or further
    tables = (embeds + (last and not (embeds and model.tied))) * table
    tables += embeds * model.table_params
    vectors, joining = last * model.last_norm_params, 0.0
    if further:
        vectors += model.mtp.norm_params(model.norm, model.d_model, model.residual.last)
        joining = model.mtp.depth * model.mtp.matrix(model.d_model).params_on_device(layout.tp)
    return Held(
        matrices=joining + sum(times * layer.matrices for layer, times in layers),
        experts=sum(times * layer.experts for layer, times in layers),
        vectors=sum(times * layer.vectors for layer, times in layers) + vectors,
        tables=tables,
        unit=max([layer.unit for layer, _ in layers] + [(first or last) * table, joining]),
    )


@dataclass(frozen=True)
class States:
    """Bytes that stand for a whole step on one device: `gradients` are the sums over micro-batches."""

    weights: float
    gradients: float
    optimizer: float
    master: float


def states(held: Held, job: Job, layout: Layout) -> States:
    """ZeRO's stages cut optimizer state and fp32 weights (1), gradients (2) and weights (3) over the devices that hold
    copies, context-parallel ones included (arXiv 1910.02054, sec. 5); experts have `ep` times fewer copies."""
    value, gradient = VALUE_BYTES[job.precision], gradient_bytes(job)
    copies = layout.dp * layout.cp

    def cut(dense: float, experts: float, stage: int) -> float:
        ways = copies if layout.zero >= stage else 1
        return dense / ways + experts / max(1.0, ways / layout.ep)

    matrices, small = optimizer_bytes(job)
    dense = matrices[0] * held.matrices + matrices[1] * held.tables + small * held.vectors
    return States(
        weights=value * cut(held.dense, held.experts, 3),
        gradients=gradient * cut(held.dense, held.experts, 2),
        optimizer=cut(dense, matrices[0] * held.experts, 1),
        master=4 * cut(held.dense, held.experts, 1) * masters_apart(job),
    )


def offloaded(state: States, layout: Layout) -> tuple[States, float]:
    """What stays on the device, and the bytes that `layout.offload` moves to the host: optimizer state and the fp32
    weights, which the host then updates (arXiv 2101.06840, sec. 4)."""
    if not layout.offload:
        return state, 0.0
    return replace(state, optimizer=0.0, master=0.0), state.optimizer + state.master


def masters_apart(job: Job) -> bool:
    """Whether the fp32 weights stand beside those that the model computes with: below fp32, and where gradients are
    taken elsewhere than at the weights."""
    return job.precision != "fp32" or job.optimizer == "schedule-free"


def gradient_bytes(job: Job) -> int:
    """Bytes of one summed gradient."""
    return 4 if job.fp32_gradients else VALUE_BYTES[job.precision]


def optimizer_bytes(job: Job) -> tuple[tuple[float, float], float]:
    """Bytes of state a parameter: ((matrices of blocks, tables), vectors).

    AdamW keeps two fp32 moments, schedule-free AdamW an iterate and a moment. For the matrices of the blocks Muon keeps
    one fp32 momentum, 8-bit AdamW two bytes and their scales (for those of at least 4096 values: all but the tiniest);
    both leave the rest to AdamW.
    """
    quantised = 2 * (1 + 4 / AdamW8.BLOCK)
    whole: tuple[tuple[float, float], float] = ((8, 8), 8)
    by_name = {"adamw": whole, "muon": ((4, 8), 8), "adamw8bit": ((quantised, 8), 8), "schedule-free": whole}
    return by_name[job.optimizer]


def update_bytes(job: Job, matrices: Iterable[tuple[Matrix, int]], layout: Layout, kind: str) -> float:
    """Bytes an update makes on the way, of `matrices` and how many like each: nothing by a fused AdamW; Muon makes all
    of one shape orthogonal together, of several devices each its share (arXiv 2502.16982, sec. 2.3), at least one
    matrix. 8-bit AdamW takes a chunk of a matrix at a time, of which it holds two moments, one's shares of its scales,
    and codes; schedule-free AdamW an fp32 value for each of a matrix or table.

    Newton-Schulz holds the update, the iterate and the next one, the iterate's Gram matrices and their polynomials: in
    fp32 on a CPU, in bf16 but for the update elsewhere.
    """
    if job.optimizer == "adamw":
        return 0.0
    shapes: dict[tuple[int, int], float] = {}
    for matrix, times in matrices:
        shape = (matrix.rows, matrix.columns)
        count = times * matrix.params_on_device(layout.tp, layout.ep) / (matrix.rows * matrix.columns)
        shapes[shape] = shapes.get(shape, 0.0) + count
    if job.optimizer == "adamw8bit":
        return ADAMW8_VALUE * min(AdamW8.CHUNK, max(rows * columns for rows, columns in shapes))
    if job.optimizer == "schedule-free":
        return 4 * max([job.model.vocab_size * job.model.d_model] + [rows * columns for rows, columns in shapes])
    iterate = 4 if kind == "cpu" else 2
    ways = layout.dp * layout.cp if layout.zero else 1
    return max(
        max(count / ways, 1) * ((4 + 2 * iterate) * rows * columns + 2 * iterate * min(rows, columns) ** 2)
        for (rows, columns), count in shapes.items()
    )


def check_experts(job: Job, layout: Layout) -> None:
    """Raise UserError when the experts cannot be dealt out to `ep` devices."""
    for block in job.model.kinds:
        if isinstance(block.ffn, MoE) and block.ffn.experts % layout.ep:
            layout.refuse("ep", f"is {layout.ep}; it must divide the model's experts={block.ffn.experts}")
