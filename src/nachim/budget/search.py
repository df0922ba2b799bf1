"""The fastest layout that fits: every split of the devices, walked in order of its time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from nachim.budget.device import DEVICES
from nachim.budget.layout import Job, Layout, PipelineSchedule, Recompute
from nachim.budget.memory import Memory, memory
from nachim.budget.time import Clock, StepTime
from nachim.spec import MLA, Attention, Cluster, Decoder, MoE, UserError

RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
BATCH_OFF = 0.05
"""A batch may be dealt out with so much more or less than was asked for."""
SHORTEST_PIECE = 4096
"""Tokens of a sequence that context parallelism leaves on a device at least: shorter ones train faster uncut."""
MOST_DEVICES = 65536


@dataclass(frozen=True)
class Placed:
    """A layout that fits, with what it holds and how long a step takes."""

    layout: Layout
    memory: Memory
    time: StepTime


class Choice(NamedTuple):
    """A layout as the search handles it: the fields of `Layout` without its checks, which cost more than its time."""

    pp: int
    tp: int
    cp: int
    ep: int
    dp: int
    zero: int
    micro_batch: int
    schedule: PipelineSchedule = "1f1b"
    virtual: int = 1
    recompute: Recompute = "none"
    sequence_parallel: bool = False
    offload: bool = False

    @property
    def group(self) -> tuple[object, ...]:
        """What it shares with the layouts that differ in micro-batch and recomputation alone."""
        return (*self[:6], self.schedule, self.virtual)

    @property
    def leanest(self) -> Choice:
        """The layout of its group that holds least."""
        return self._replace(micro_batch=1, recompute="full")

    def layout(self) -> Layout:
        """As a checked value."""
        return Layout(**self._asdict())


def layouts(job: Job, cluster: Cluster, keep: int = 5) -> list[Placed]:
    """At most `keep` layouts of all devices of `cluster` that fit, fastest first.

    Raises UserError when the batch cannot be dealt out, or when nothing fits: it says by how many bytes the smallest
    footprint exceeds a device, and what would make it fit.
    """
    clock, bytes_there = Clock(job, cluster), cluster.device.memory_bytes
    waiting = [(-clock.step(choice).tokens_per_second, choice) for choice in choices(job, cluster)]
    if not waiting:
        _refuse_batch(job, cluster)
    heapq.heapify(waiting)
    fits: dict[tuple[object, ...], bool] = {}
    too_many: dict[tuple[object, ...], int] = {}  # sequences at a time that a group with this recomputation cannot hold
    found: list[Placed] = []
    while waiting and len(found) < keep:
        _, choice = heapq.heappop(waiting)
        if choice.group not in fits:
            fits[choice.group] = _held(job, choice.leanest, cluster).total <= bytes_there
        if not fits[choice.group]:
            continue
        grade = (*choice.group, choice.recompute)
        if choice.micro_batch < too_many.get(grade, choice.micro_batch + 1):
            held = _held(job, choice, cluster)
            if held.total <= bytes_there:
                found.append(Placed(choice.layout(), held, clock.step(choice)))
            else:
                too_many[grade] = choice.micro_batch
        if choice.recompute != "full":
            # Recomputation takes time and frees memory: the next grade is worth a look only now.
            slower = choice._replace(recompute=RECOMPUTE[RECOMPUTE.index(choice.recompute) + 1])
            heapq.heappush(waiting, (-clock.step(slower).tokens_per_second, slower))
    if not found:
        _refuse_memory(job, cluster)
    return found


def choices(job: Job, cluster: Cluster) -> Iterator[Choice]:
    """Every layout of all devices without recomputation, in which everything divides what it cuts."""
    for split in splits(job, cluster):
        for micro in _micro_batches(job, split.dp):
            micro_batches = round(job.batch / (split.dp * micro))
            for schedule, virtual in _schedules(job.model, split.pp, micro_batches):
                for zero in _stages_of_zero(split):
                    yield split._replace(zero=zero, micro_batch=micro, schedule=schedule, virtual=virtual)


def splits(job: Job, cluster: Cluster) -> Iterator[Choice]:
    """Every way to cut model, sequence and experts over the devices; the rest are replicas."""
    model, count, node = job.model, cluster.count, cluster.device.node_devices
    experts = [block.ffn.experts for block in model.kinds if isinstance(block.ffn, MoE)]
    for tp in _divisors(count):
        if tp > node or node % tp or not cuts(model, tp) or job.seq_len % tp:
            continue
        for pp in _divisors(count // tp):
            if model.n_layers % pp:
                continue
            for cp in _divisors(count // (tp * pp)):
                if cp > 1 and not _cuts_sequence(job, cp):
                    continue
                dp = count // (tp * pp * cp)
                for ep in _divisors(dp * cp):
                    if ep == 1 or (experts and not any(number % ep for number in experts)):
                        yield Choice(pp, tp, cp, ep, dp, 0, 1, sequence_parallel=tp > 1)


def cuts(model: Decoder, tp: int) -> bool:
    """Whether `tp` divides the vocabulary and what every matrix is cut along, heads whole.

    More devices than key-value heads are fine where they can hold equal copies.
    """
    if model.vocab_size % tp:
        return False
    for block in model.kinds:
        for matrix in (matrix for layer in block.layers for matrix in layer.matrices(model.d_model)):
            if matrix.split == "rows" and (matrix.pieces or matrix.rows) % tp:
                return False
            if matrix.split == "columns":
                pieces = matrix.pieces or matrix.columns
                if pieces % tp and tp % pieces:
                    return False
    return True


def _cuts_sequence(job: Job, cp: int) -> bool:
    """Whether `cp` devices can share a sequence: two pieces each balance the causal mask (arXiv 2407.21783, 3.3.2)."""
    attention = all(isinstance(block.mixer, (Attention, MLA)) for block in job.model.kinds)
    return attention and job.seq_len % (2 * cp) == 0 and job.seq_len // cp >= SHORTEST_PIECE


def _micro_batches(job: Job, dp: int) -> Iterator[int]:
    """Sequences at a time, in powers of two, with which `dp` replicas come to about the batch."""
    micro = 1
    while dp * micro <= job.batch * (1 + BATCH_OFF):
        there = max(1, round(job.batch / (dp * micro))) * dp * micro
        if abs(there - job.batch) <= BATCH_OFF * job.batch:
            yield micro
        micro *= 2


def _schedules(model: Decoder, pp: int, micro_batches: int) -> Iterator[tuple[PipelineSchedule, int]]:
    """Schedules worth a look: GPipe takes 1F1B's time and more memory, chunks need whole rounds of micro-batches."""
    yield "1f1b", 1
    if pp > 1:
        yield "zero-bubble", 1
        chunks = (2, 4) if micro_batches % pp == 0 else ()
        yield from (("interleaved", virtual) for virtual in chunks if model.n_layers % (pp * virtual) == 0)


def _stages_of_zero(split: Choice) -> tuple[int, ...]:
    """Stage 1 costs nothing over none; a pipeline would gather again for every micro-batch from stage 2 on."""
    if split.dp * split.cp == 1:
        return (0,)
    return (1, 2, 3) if split.pp == 1 else (1,)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _held(job: Job, choice: Choice, cluster: Cluster) -> Memory:
    return memory(job, choice.layout(), cluster.device.kind)


def smallest(job: Job, cluster: Cluster, offload: bool = False) -> int | None:
    """Bytes on the fullest device of the leanest layout; None where no layout deals out the batch."""
    least = {
        choice._replace(zero=_stages_of_zero(choice)[-1], offload=offload).leanest
        for choice in splits(job, cluster)
        if 1 in _micro_batches(job, choice.dp)
    }
    return min((_held(job, choice, cluster).total for choice in least), default=None)


def _refuse_batch(job: Job, cluster: Cluster) -> None:
    raise UserError(
        f"a batch of {job.batch} sequences of {job.seq_len} tokens cannot be dealt out to {cluster.count} devices: "
        "take another number of devices (a power of two), or a larger batch"
    )


def _refuse_memory(job: Job, cluster: Cluster) -> None:
    """Say by how much nothing fits, and the ways out that were found to lead out."""
    there = cluster.device.memory_bytes
    needed = smallest(job, cluster) or 0
    ways = [f"{count} devices" for count in _more(job, cluster)]
    larger = [device for device in DEVICES.values() if device.memory_bytes >= needed and device.kind != "cpu"]
    if larger:
        ways.append(f"devices with {needed / 1e9:.0f} GB, such as {min(larger, key=lambda d: d.memory_bytes).name}")
    if job.optimizer != "adamw8bit" and (smallest(replace(job, optimizer="adamw8bit"), cluster) or there + 1) <= there:
        ways.append("the 8-bit optimizer")
    if (smallest(job, cluster, offload=True) or there + 1) <= there:
        ways.append("offloading to the host")
    out = f"; what would make it fit: {', or '.join(ways)}" if ways else "; train a smaller model"
    raise UserError(
        f"{job.model.params_total / 1e9:.3g} B parameters fit no layout on {cluster.count} x {cluster.device.name}: "
        f"the smallest needs {needed:,} bytes on a device, {needed - round(there):,} more than it has{out}"
    )


def _more(job: Job, cluster: Cluster) -> Iterator[int]:
    """The first doubling of the devices on which a layout fits, if there is one."""
    device, count = cluster.device, 2 * cluster.count
    reach = MOST_DEVICES if device.network_bandwidth else device.node_devices
    while count <= reach and device.link_bandwidth:
        needed = smallest(job, replace(cluster, count=count))
        if needed is None:
            return
        if needed <= device.memory_bytes:
            yield count
            return
        count *= 2
