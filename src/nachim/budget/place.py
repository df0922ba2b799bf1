"""Where designs run: each in its fastest layout that fits, and smaller ones where none does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nachim.budget.designs import BAND, RANK, Asked, Design, design_of, designs, given_decoder, smallest_cost
from nachim.budget.layout import Job, Layout
from nachim.budget.measured import HERE, measured_device, measured_steps
from nachim.budget.memory import Memory
from nachim.budget.search import Placed, layouts, smallest
from nachim.spec import Cluster, UserError


@dataclass(frozen=True)
class Placement:
    """A design on a cluster in its fastest layout that fits."""

    design: Design
    job: Job
    placed: Placed
    cluster: Cluster
    seconds_per_step: float

    @property
    def layout(self) -> Layout:
        """How it is spread over the devices."""
        return self.placed.layout

    @property
    def memory(self) -> Memory:
        """Bytes on the fullest device."""
        return self.placed.memory

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.design.batch_tokens / self.seconds_per_step

    @property
    def mfu(self) -> float:
        """M and the head over the peak of the job's precision."""
        model = self.design.model
        flops = self.design.flops_per_token + model.head_flops_per_token
        return flops * self.tokens_per_second / (self.cluster.count * self.cluster.device.peak(self.job.precision))

    @property
    def hours(self) -> float:
        """Of all steps; neither validation nor checkpoints nor failures are counted."""
        return self.design.steps * self.seconds_per_step / 3600

    @property
    def dollars(self) -> float | None:
        """At the device's price; None where nobody knows it."""
        price = self.cluster.device.dollars_per_hour
        return None if price is None else self.hours * self.cluster.count * price

    @property
    def kilowatt_hours(self) -> float | None:
        """Of the devices and their share of the nodes; None where nobody knows the watts."""
        watts = self.cluster.device.watts
        return None if watts is None else self.hours * self.cluster.count * watts / 1000


@dataclass(frozen=True)
class Found:
    """Designs in their layouts, best first, and those that fit none.

    `refusal` says why not, where not one of the designs near the least loss fits and the placements are smaller ones;
    none of those has more than `most` FLOP/token.
    """

    placements: tuple[Placement, ...]
    homeless: tuple[Design, ...]
    refusal: str | None = None
    most: float = math.inf

    @property
    def best(self) -> Placement:
        """The design to train."""
        return self.placements[0]


def place(asked: Asked, design: Design, cluster: Cluster) -> Placement:
    """`design` in its fastest layout on `cluster`; on this machine's CPU at the speed of its measured steps.

    Raises UserError when none fits, saying by how many bytes.
    """
    job = _job(asked, design, cluster)
    placed = layouts(job, cluster, keep=1)[0]
    steps = measured_steps() if _is_here(cluster) else None
    return Placement(design, job, placed, cluster, steps.seconds(job) if steps else placed.time.seconds)


def _job(asked: Asked, design: Design, cluster: Cluster) -> Job:
    return Job(
        model=design.model,
        seq_len=design.seq_len,
        batch_tokens=design.batch_tokens,
        optimizer="muon" if asked.small else "adamw",
        precision=precision_of(cluster),
    )


def precision_of(cluster: Cluster) -> Literal["fp32", "bf16"]:
    """What it trains in: bf16 where that is the faster."""
    return "bf16" if cluster.device.bf16_flops > cluster.device.fp32_flops else "fp32"


def _is_here(cluster: Cluster) -> bool:
    """Whether it is the CPU that `nachim measure` measured."""
    mine = cluster.device.kind == "cpu" and cluster.count == 1 and HERE.exists()
    return mine and measured_device().name == cluster.device.name


def first(asked: Asked, shape: str | None) -> Design:
    """The design of least loss, or the one wished for."""
    if not shape:
        return designs(asked)[0]
    return design_of(asked, dataclasses.replace(given_decoder(shape, asked.vocab_size), mtp=asked.mtp))


def find(asked: Asked, shape: str | None, cluster: Cluster) -> Found:
    """Every design in its layout, by loss in steps of `RANK`, then by hours; and those without one.

    Where none has one, the designs of least loss that do, unless a `shape` was wished for.
    """
    given = (first(asked, shape),) if shape else designs(asked)
    placements, homeless, refusal = _placed(asked, given, cluster)
    if placements:
        return Found(placements, homeless)
    assert refusal is not None  # there is a design, and it is in one of the two
    most = None if shape else _largest(asked, min(one.flops_per_token for one in homeless), cluster)
    if most is None:
        raise refusal
    placements, _, _ = _placed(asked, designs(asked, most=most), cluster)
    if not placements:
        raise refusal
    return Found(placements, homeless, str(refusal), most)


def _placed(
    asked: Asked, given: tuple[Design, ...], cluster: Cluster
) -> tuple[tuple[Placement, ...], tuple[Design, ...], UserError | None]:
    """Those that fit, ranked; those that do not, and why the first of them does not."""
    found, homeless, refusal = [], [], None
    for design in given:
        try:
            found.append(place(asked, design, cluster))
        except UserError as error:
            homeless.append(design)
            refusal = refusal or error
    return ranked(found), tuple(homeless), refusal


def ranked(placements: Iterable[Placement]) -> tuple[Placement, ...]:
    """By loss in steps of `RANK`, then by hours."""
    given = tuple(placements)
    least = min((one.design.loss for one in given), default=math.inf)
    return tuple(sorted(given, key=lambda one: (math.floor((one.design.loss / least - 1) / RANK), one.hours)))


def _largest(asked: Asked, limit: float, cluster: Cluster) -> float | None:
    """The largest M below `limit`, in steps of a band, that has a design which fits; None where not one has.

    What a model holds grows with its size: bisection.
    """
    steps = math.ceil(math.log(limit / smallest_cost(asked), BAND))
    fitting, unfit = steps, 0
    if not _fits(asked, limit, steps, cluster):
        return None
    while fitting - unfit > 1:
        middle = (fitting + unfit) // 2
        fitting, unfit = (middle, unfit) if _fits(asked, limit, middle, cluster) else (fitting, middle)
    return _most(asked, limit, fitting)


def _most(asked: Asked, limit: float, steps: int) -> float:
    return max(limit / BAND**steps, smallest_cost(asked))


def _fits(asked: Asked, limit: float, steps: int, cluster: Cluster) -> bool:
    """Whether a design `steps` bands below `limit` has a layout that fits."""
    try:
        given = designs(asked, most=_most(asked, limit, steps))
    except UserError:
        return False
    needed = (smallest(_job(asked, design, cluster), cluster) for design in given)
    return any(each is not None and each <= cluster.device.memory_bytes for each in needed)
