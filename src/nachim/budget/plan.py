"""From a budget to what to train: compute, a law's optimum, real designs, where they run, and what that costs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from nachim.budget.designs import RANK, Asked, Design, design_of, designs, given_decoder, settings
from nachim.budget.device import device_named
from nachim.budget.layout import Job, Layout
from nachim.budget.measured import HERE, measured_device, measured_steps
from nachim.budget.memory import Memory
from nachim.budget.search import Placed, layouts
from nachim.law.published import FLOPS_PER_UNIT, Interval, KnownLaw, Optimum, Surface
from nachim.spec import Cluster, UserError

ASSUMED_DEVICE, ASSUMED_HOURS = "H100", 30 * 24.0
"""Where no devices are named: H100s, as few (a power of two) as finish within 30 days."""
MOST_ASSUMED = 2**17
GUESS = 0.4
"""MFU that the first estimate of a budget in hours starts from; the layout's own replaces it."""
ROUNDS, SETTLED, TOLERANCE = 8, 3, 0.01


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A budget (FLOP, devices for hours, or dollars) and what else is known. None: not said.

    `dollars_per_hour` replaces a device's list price, `shape` (LAYERSxWIDTH[xHEADS[xKV_HEADS]]) the search for one.
    """

    law: KnownLaw
    flops: float | None = None
    cluster: Cluster | None = None
    hours: float | None = None
    dollars: float | None = None
    dollars_per_hour: float | None = None
    unique_tokens: float | None = None
    seq_len: int | None = None
    vocab_size: int | None = None
    shape: str | None = None


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


Placements, Homeless = tuple[Placement, ...], tuple[Design, ...]


@dataclass(frozen=True)
class Plan:
    """The answer: the law's `optimum`, and designs around it, best first. `homeless` are designs that fit no layout.

    `assumed` says that nobody named the devices; `rounds` how often the budget was worked out again until compute and
    hours agreed (0 where the compute was given).
    """

    wish: Wish
    asked: Asked
    optimum: Optimum
    placements: Placements
    homeless: Homeless
    assumed: bool
    rounds: int

    @property
    def best(self) -> Placement:
        """The design to train."""
        return self.placements[0]

    @property
    def cluster(self) -> Cluster:
        """Where it runs."""
        return self.best.cluster

    @property
    def optimum_loss(self) -> float:
        """The loss law's loss at the optimum; where it counts scale otherwise, at the same tokens and compute."""
        surface, x = self._at_optimum()
        return surface.loss(x, self.optimum.tokens)

    @property
    def optimum_interval(self) -> Interval | None:
        """Its 90 % prediction interval; None where the loss law has none."""
        surface, x = self._at_optimum()
        return surface.loss_interval(x, self.optimum.tokens)

    def _at_optimum(self) -> tuple[Surface, float]:
        law = self.asked.loss_law
        assert law.surface is not None  # the loss law has one
        return law.surface, self.optimum.flops / (FLOPS_PER_UNIT[law.scale] * self.optimum.tokens)

    @property
    def epochs(self) -> float | None:
        """How often the best design sees the unique tokens; None where they are not said."""
        unique = self.wish.unique_tokens
        return None if unique is None else self.best.design.tokens / unique


def make_plan(wish: Wish) -> Plan:
    """The plan for a wish. Raises UserError for a budget that is none, or too small, or that fits no device."""
    _check(wish)
    cluster = _priced(wish, wish.cluster) if wish.cluster else _assumed(wish)
    seconds, rounds = _seconds(wish, cluster), 0
    if seconds is None:
        assert wish.flops is not None  # `_check`
        if wish.cluster is None:
            cluster = _grown(wish, cluster, wish.flops)
        asked = _asked(wish, cluster, wish.flops)
        placements, homeless = _placements(wish, asked, cluster)
    else:
        asked, placements, homeless, rounds = _affordable(wish, cluster, seconds)
    return Plan(wish, asked, wish.law.optimum(asked.flops), placements, homeless, wish.cluster is None, rounds)


def _check(wish: Wish) -> None:
    """Exactly one budget, each number positive and finite."""
    numbers = ("flops", "hours", "dollars", "dollars_per_hour", "unique_tokens", "seq_len", "vocab_size")
    for name in numbers:
        value = getattr(wish, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name.replace('_', '-')} is {value:g}; it must be a number above 0")
    budgets = [name for name in ("flops", "hours", "dollars") if getattr(wish, name) is not None]
    if len(budgets) > 1:
        said = " and ".join(f"--{name}" for name in budgets)
        raise UserError(f"{said} are two budgets: give one of --flops, --devices with --hours, or --dollars")
    if not budgets:
        more = ": say for how long with --hours" if wish.cluster else ""
        raise UserError(f"no budget{more or ': give --flops, --devices with --hours, or --dollars'}")
    if wish.hours is not None and wish.cluster is None:
        raise UserError("--hours of what? name the devices, such as --devices 8xH200")


def _priced(wish: Wish, cluster: Cluster) -> Cluster:
    """`cluster` at the wished price."""
    if wish.dollars_per_hour is None:
        return cluster
    device = dataclasses.replace(cluster.device, dollars_per_hour=wish.dollars_per_hour)
    return dataclasses.replace(cluster, device=device)


def _assumed(wish: Wish) -> Cluster:
    """The fewest devices that could spend the budget in the assumed time: for dollars exactly, for FLOP at a guess."""
    one = _priced(wish, Cluster(device=device_named(ASSUMED_DEVICE)))
    if wish.dollars is not None:
        device_hours = wish.dollars / _price(one)
    else:
        assert wish.flops is not None  # `_check`
        device_hours = wish.flops / (one.device.bf16_flops * GUESS) / 3600
    wanted = max(1.0, device_hours / ASSUMED_HOURS)
    return dataclasses.replace(one, count=min(MOST_ASSUMED, 2 ** math.ceil(math.log2(wanted))))


def _grown(wish: Wish, cluster: Cluster, flops: float) -> Cluster:
    """The first of `cluster`, twice it, four times it ... on which the best design fits and finishes in time."""
    while True:
        refusal: UserError | None = None
        asked = _asked(wish, cluster, flops)
        try:
            if place(asked, _first(wish, asked), cluster).hours <= ASSUMED_HOURS:
                return cluster
        except UserError as error:
            refusal = error
        if cluster.count >= MOST_ASSUMED:
            raise refusal or UserError(
                f"{flops:.3g} FLOP take longer than {ASSUMED_HOURS / 24:.0f} days on {cluster.count} "
                f"{cluster.device.name}: name the devices with --devices"
            )
        cluster = dataclasses.replace(cluster, count=2 * cluster.count)


def _seconds(wish: Wish, cluster: Cluster) -> float | None:
    """Seconds that the budget lasts on `cluster`; None where the budget is compute."""
    if wish.hours is not None:
        return 3600 * wish.hours
    return None if wish.dollars is None else 3600 * wish.dollars / (_price(cluster) * cluster.count)


def _price(cluster: Cluster) -> float:
    price = cluster.device.dollars_per_hour
    if not price:
        raise UserError(f"nobody knows what an hour of {cluster.device.name} costs: give --dollars-per-hour")
    return price


def _affordable(wish: Wish, cluster: Cluster, seconds: float) -> tuple[Asked, Placements, Homeless, int]:
    """The designs for the compute that the best of them spends in `seconds`, and the rounds that it took.

    The design depends on the compute, its speed on the design, the compute on its speed: round and round until they
    agree to `TOLERANCE`, at first with the design of least loss alone. Rounds beyond `ROUNDS` mean that they did not.
    """
    flops = seconds * cluster.count * cluster.device.peak(_precision(cluster)) * GUESS
    asked = _asked(wish, cluster, flops)
    with contextlib.suppress(UserError):  # it may fit nowhere where a smaller design of nearly its loss does
        first = place(asked, _first(wish, asked), cluster)
        flops = seconds * first.tokens_per_second * first.design.flops_per_token
    for turn in range(2, ROUNDS + 2):
        # At a limit between two vocabularies, lengths or families they would change every round: soon they stay.
        settled = turn > SETTLED
        asked = dataclasses.replace(asked, flops=flops, ladder=asked.small) if settled else _asked(wish, cluster, flops)
        placements, homeless = _placements(wish, asked, cluster)
        best = placements[0]
        reached = seconds * best.tokens_per_second * best.design.flops_per_token
        if abs(reached / flops - 1) < TOLERANCE:
            return asked, placements, homeless, turn
        flops = reached
    return asked, placements, homeless, ROUNDS + 1


def _asked(wish: Wish, cluster: Cluster, flops: float) -> Asked:
    """The question for designs at `flops`, the unsaid filled in."""
    vocab_size, seq_len = settings(flops)
    return Asked(
        flops=flops,
        seq_len=wish.seq_len or seq_len,
        vocab_size=wish.vocab_size or vocab_size,
        law=wish.law,
        unique_tokens=wish.unique_tokens,
        devices=cluster.count,
    )


def _first(wish: Wish, asked: Asked) -> Design:
    """The design of least loss, or the one wished for."""
    return design_of(asked, given_decoder(wish.shape, asked.vocab_size)) if wish.shape else designs(asked)[0]


def place(asked: Asked, design: Design, cluster: Cluster) -> Placement:
    """`design` in its fastest layout on `cluster`; on this machine's CPU at the speed of its measured steps.

    Raises UserError when none fits, saying by how many bytes.
    """
    job = Job(
        model=design.model,
        seq_len=design.seq_len,
        batch_tokens=design.batch_tokens,
        optimizer="muon" if asked.small else "adamw",
        precision=_precision(cluster),
    )
    placed = layouts(job, cluster, keep=1)[0]
    steps = measured_steps() if _is_here(cluster) else None
    return Placement(design, job, placed, cluster, steps.seconds(job) if steps else placed.time.seconds)


def _precision(cluster: Cluster) -> Literal["fp32", "bf16"]:
    return "bf16" if cluster.device.bf16_flops > cluster.device.fp32_flops else "fp32"


def _is_here(cluster: Cluster) -> bool:
    """Whether it is the CPU that `nachim measure` measured."""
    mine = cluster.device.kind == "cpu" and cluster.count == 1 and HERE.exists()
    return mine and measured_device().name == cluster.device.name


def _placements(wish: Wish, asked: Asked, cluster: Cluster) -> tuple[Placements, Homeless]:
    """Every design in its layout, by loss in steps of `RANK`, then by hours; and those without one."""
    found, homeless, refusal = [], [], None
    for design in [_first(wish, asked)] if wish.shape else designs(asked):
        try:
            found.append(place(asked, design, cluster))
        except UserError as error:
            homeless.append(design)
            refusal = refusal or error
    if not found:
        assert refusal is not None  # there is a design, and it is in one of the two
        raise refusal
    least = min(one.design.loss for one in found)
    found.sort(key=lambda one: (math.floor((one.design.loss / least - 1) / RANK), one.hours))
    return tuple(found), tuple(homeless)
