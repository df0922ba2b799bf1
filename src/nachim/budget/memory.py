"""Bytes that a training job takes on the fullest of its devices, counted part by part."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nachim.budget.activations import (
    CAPACITY,
    head_bytes,
    joining_bytes,
    kept,
    kept_logit_bytes,
    logit_bytes,
    row_bytes,
    tokens_at_once,
)
from nachim.budget.layout import Job, Layout
from nachim.budget.pipeline import in_flight, stage_blocks
from nachim.budget.recompute import fullest, grades, passages
from nachim.budget.states import (
    VALUE_BYTES,
    Held,
    States,
    check_experts,
    gradient_bytes,
    held_by_block,
    held_by_stage,
    masters_apart,
    offloaded,
    states,
    update_bytes,
)
from nachim.spec import Decoder, Matrix, MoE
from nachim.spec.activations import Activations
from nachim.spec.model import Block

FRAGMENTATION = 0.15
"""Share of what comes and goes (activations, logits, buffers) that torch's caching allocator for accelerators loses to
gaps: the mean over eight language models of arXiv 2401.08156 (abstract; 33 % at worst)."""

Kind = Literal["cpu", "cuda", "rocm"]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the fullest device at the fullest moment of a step; `host` is what offloading moves to host memory.

    `stage` is that device's pipeline stage, from 0, and `moment` when it is fullest: "loss" (a forward pass has just
    ended), "backward" (it goes back through the first layer it meets), "gradients" (it has come to the last) or
    "update" (of the weights).
    """

    weights: int
    gradients: int
    optimizer: int
    master: int
    activations: int
    logits: int
    buffers: int
    fragmentation: int
    host: int
    stage: int
    moment: str

    @property
    def total(self) -> int:
        """Bytes on the device."""
        held = self.weights + self.gradients + self.optimizer + self.master
        return held + self.activations + self.logits + self.buffers + self.fragmentation

    def as_dict(self) -> dict[str, int | str]:
        """Plain values for JSON, the total included."""
        return dataclasses.asdict(self) | {"total": self.total}


@dataclass(frozen=True)
class _Stage:
    """One pipeline stage: its layers of each kind, and what else stands on it."""

    index: int
    blocks: dict[Block, int]
    first: bool
    last: bool
    flights: float

    def matrices(self, model: Decoder) -> list[tuple[Matrix, int]]:
        """Its matrices, each with how many like it there are."""
        blocks = self.blocks.items()
        found = [(m, times) for block, times in blocks for layer in block.layers for m in layer.matrices(model.d_model)]
        if self.last and model.mtp is not None:
            found.append((model.mtp.matrix(model.d_model), model.mtp.depth))
        return found


def memory(job: Job, layout: Layout, kind: Kind = "cuda", activations: Activations | None = None) -> Memory:
    """Bytes of `job` laid out as `layout` on devices of `kind`; `activations` stand in place of the layout's own.

    States follow arXiv 1910.02054, activations what the parts declare they keep (arXiv 2205.05198's accounting with a
    kernel that keeps no score matrix), the logits what the fp32 loss of this repository makes; a CPU training in fp32
    by compiled functions of one pass (`nachim.model.fused`) keeps less of both. One device frees its
    gradients every step and holds none in the first forward pass; several keep their buffers. What drivers and
    libraries take beside tensors is not counted. Raises UserError when layers or experts cannot be dealt out, or when
    `activations` ask for what is impossible, or for a pipeline.
    """
    check_experts(job, layout)
    if activations is not None and layout.pp > 1:
        layout.refuse("pp", f"is {layout.pp}; activations of one's own are for a model that is not cut into stages")
    found = (moment for stage in _stages(job, layout) for moment in _moments(stage, job, layout, kind, activations))
    return max(found, key=_Moment.total).counted()


def _stages(job: Job, layout: Layout) -> Iterator[_Stage]:
    """The stages that can be the fullest: of equal ones the first, which holds the most micro-batches."""
    seen: list[tuple[bool, bool, dict[Block, int]]] = []
    stages = stage_blocks(job.model, layout)
    micro_batches = layout.micro_batches(job)
    for index, blocks in enumerate(stages):
        what = (index == 0, index == len(stages) - 1, blocks)
        if what not in seen:
            seen.append(what)
            yield _Stage(index, blocks, what[0], what[1], in_flight(layout, index, micro_batches))


@dataclass(frozen=True)
class _Moment:
    """What stands on a stage's device at one moment, in bytes, and the `host` memory it needs."""

    name: str
    stage: int
    states: States
    gradients: float
    activations: float = 0.0
    logits: float = 0.0
    buffers: float = 0.0
    host: float = 0.0
    lost: float = 0.0

    def moving(self) -> float:
        """Bytes that come and go."""
        return self.activations + self.logits + self.buffers

    def total(self) -> float:
        """Bytes on the device, gaps included."""
        held = self.states.weights + self.states.optimizer + self.states.master + self.gradients
        return held + self.moving() * (1 + self.lost)

    def counted(self) -> Memory:
        """In whole bytes."""
        return Memory(
            weights=round(self.states.weights),
            gradients=round(self.gradients),
            optimizer=round(self.states.optimizer),
            master=round(self.states.master),
            activations=round(self.activations),
            logits=round(self.logits),
            buffers=round(self.buffers),
            fragmentation=round(self.moving() * self.lost),
            host=round(self.host),
            stage=self.stage,
            moment=self.name,
        )


@dataclass(frozen=True)
class _Passed:
    """Bytes that one micro-batch leaves in a stage's layers: in all, in the fullest one, and, where the backward pass
    of the decoder's holds most, those that are left and those beside them; those beside a module's for further tokens
    too."""

    stored: float
    one: float
    left: float
    beside: float
    beside_module: float


def _passed(stage: _Stage, job: Job, layout: Layout, kind: Kind, activations: Activations | None) -> _Passed:
    model = job.model
    if activations is None:
        layers = [(kept(block, job, layout, kind), times) for block, times in stage.blocks.items()]
        stored = sum(times * layer.stored for layer, times in layers)
        beside = max(layer.working + layer.remade for layer, _ in layers)
        module = kept(model.blocks[-1], job, layout, kind)
        left = stored - stage.last * (model.passes - 1) * module.stored
        most = max(layer.stored for layer, _ in layers)
        return _Passed(stored, most, left, beside, module.working + module.remade)
    blocks = model.trained_blocks
    chosen = grades(job, layout, activations, kind, blocks)
    each = [kept(block, job, layout, kind, grade) for block, grade in zip(blocks, chosen, strict=True)]
    together = passages(model, chosen, activations.every_blocks)
    left, beside = fullest(each, [part for part in together if part.start < model.n_layers])
    stored = sum(each[part.start].stored for part in together)
    return _Passed(stored, each[0].stored, left, beside, each[-1].working + each[-1].remade)


def _moments(stage: _Stage, job: Job, layout: Layout, kind: Kind, activations: Activations | None) -> Iterator[_Moment]:
    """The moments between which memory rises and falls steadily: layers free as much as gradients take."""
    held = held_by_stage(job.model, stage.blocks, layout, stage.first, stage.last)
    state, host = offloaded(states(held, job, layout), layout)
    moment = functools.partial(_Moment, stage=stage.index, states=state, lost=FRAGMENTATION * (kind != "cpu"))
    stays = layout.devices > 1 or layout.micro_batches(job) > 1
    standing = state.gradients * stays
    traffic = _traffic(stage, held, job, layout)

    passed = _passed(stage, job, layout, kind, activations)
    back, one = passed.beside + traffic, passed.one
    offload = kind != "cpu" and (layout.offload if activations is None else activations.offload)
    here, away = _placed(passed.stored * stage.flights, one, offload)
    left, _ = _placed(passed.stored * (stage.flights - 1) + passed.left, one, offload)
    table = job.model.vocab_size * job.model.d_model
    of_head = VALUE_BYTES[job.precision] * table * (not stays)
    further = stage.last and job.model.mtp is not None
    if stage.last:
        passes, host_then = stage.flights * job.model.passes, host + away
        head = head_bytes(job, layout, kind)
        after = here + joining_bytes(job, layout, kind) * stage.flights
        logits = logit_bytes(job, layout, passes)
        at_loss = {"activations": after + head * passes, "logits": logits, "buffers": traffic}
        yield moment("loss", gradients=standing, host=host_then, **at_loss)
        if further:  # the first block met is a module's: the decoder's own loss still stands
            logits = kept_logit_bytes(job, layout, passes - 1)
            held_then = {"activations": after + head * (passes - 1), "logits": logits}
            beside = passed.beside_module + traffic
            yield moment("backward", gradients=standing + of_head, host=host_then, buffers=beside, **held_then)
    yield moment("backward", gradients=standing + of_head, activations=left, buffers=back, host=host + away)
    if layout.devices == 1:
        first = max(held_by_block(block, job.model, 1, 1).total for block in stage.blocks) + table * (not further)
        for missing, left, beside in ((first, one, back), (0, 0, 0)):
            sums, more = _made(held, missing, table, job, stays)
            yield moment("gradients", gradients=standing + sums, activations=left, buffers=beside + more, host=host)
    update = update_bytes(job, stage.matrices(job.model), layout, kind)
    yield moment("update", gradients=state.gradients, buffers=update, host=host)


def _made(held: Held, missing: float, table: float, job: Job, stays: bool) -> tuple[float, float]:
    """Bytes of gradients that one device's backward pass has made when those of `missing` parameters are still to come:
    those that are the sums themselves, and those beside them.

    Where there are sums already, on the same weights, one unit at a time is added as it comes. Where the fp32 weights
    stand apart all are kept until the end, and then cast and added one by one, the embedding's `table` first.
    """
    value = VALUE_BYTES[job.precision]
    made = value * (held.total - missing)
    if not stays:
        return made, 0.0
    if gradient_bytes(job) == value and not masters_apart(job):
        return 0.0, value * held.unit
    return 0.0, made + gradient_bytes(job) * table * (not missing)


def _placed(stored: float, one: float, offload: bool) -> tuple[float, float]:
    """Bytes of stored activations on the device and in host memory: offloading leaves the layer in work and the one on
    its way. A CPU has no other memory than its own."""
    if not offload:
        return stored, 0.0
    here = min(stored, 2 * one)
    return here, stored - here


def _traffic(stage: _Stage, held: Held, job: Job, layout: Layout) -> float:
    """Bytes of what is sent or received while layers work."""
    value, tokens = VALUE_BYTES[job.precision], tokens_at_once(job, layout)
    row = tokens * row_bytes(job, layout)
    found = 0.0
    if layout.dp * layout.cp > 1:
        found += value * held.unit  # gradients of one block, as they come
        if layout.zero >= 2:
            found += gradient_bytes(job) * held.unit  # what is reduced and scattered
        if layout.zero == 3:
            found += 2 * value * held.unit  # the block in work and the next, gathered
    if layout.tp > 1 and layout.sequence_parallel:
        found += row * layout.tp  # one layer's input, gathered
    if layout.pp > 1:
        found += 2 * row  # activations one way, gradients the other
    if layout.cp > 1:
        cache = max(block.mixer.cache_bytes(tokens, value) for block in stage.blocks)
        found += 2 * cache / layout.tp  # keys and values in work, and those arriving
    if layout.ep > 1:
        rows = max((block.ffn.active for block in stage.blocks if isinstance(block.ffn, MoE)), default=0)
        found += CAPACITY * rows * row  # tokens on their way to their experts
    return found
