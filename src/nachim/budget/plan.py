"""From a budget to what to train: compute, a law's optimum, real designs, where they run, and what that costs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass

from nachim.budget.designs import Asked, Design, design_of, loss_at, settings
from nachim.budget.device import device_named
from nachim.budget.place import Found, Placement, find, first, place, precision_of, ranked
from nachim.law.published import FLOPS_PER_UNIT, Interval, KnownLaw, Optimum
from nachim.spec import MTP, Cluster, UserError

ASSUMED_DEVICE, ASSUMED_HOURS = "H100", 30 * 24.0
"""Where no devices are named: H100s, as few (a power of two) as finish within 30 days."""
MOST_ASSUMED = 2**17
GUESS = 0.4
"""MFU that the first estimate of a budget in hours starts from; the layout's own replaces it."""
ROUNDS, SETTLED, TOLERANCE = 6, 3, 0.01


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A budget (FLOP, devices for hours, or dollars) and what else is known. None: not said.

    `dollars_per_hour` replaces a device's list price, `shape` (LAYERSxWIDTH[xHEADS[xKV_HEADS]]) the search for one;
    `mtp` are modules for further tokens, trained beside the decoder.
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
    mtp: MTP | None = None


@dataclass(frozen=True)
class Plan:
    """The answer: the law's `optimum`, and designs around it, best first.

    `assumed` says that nobody named the devices; `rounds` how often the budget was worked out again until compute and
    hours agreed (0 where the compute was given), `kept` that the designs were kept in the last of them.
    """

    wish: Wish
    asked: Asked
    optimum: Optimum
    found: Found
    assumed: bool
    rounds: int
    kept: bool

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Designs in their layouts, best first."""
        return self.found.placements

    @property
    def best(self) -> Placement:
        """The design to train."""
        return self.found.best

    @property
    def cluster(self) -> Cluster:
        """Where it runs."""
        return self.best.cluster

    @property
    def optimum_loss(self) -> float:
        """The loss law's loss at the optimum; where it counts scale otherwise, at the same tokens and compute.

        Tokens that repeat count at what they are worth.
        """
        return loss_at(self.asked, self._optimal_x(), self.optimum.tokens)

    @property
    def fresh_loss(self) -> float:
        """The same with all its tokens fresh."""
        return loss_at(dataclasses.replace(self.asked, unique_tokens=None), self._optimal_x(), self.optimum.tokens)

    @property
    def optimum_interval(self) -> Interval | None:
        """Its 90 % prediction interval; None where the loss law has none."""
        surface = self.asked.loss_law.surface
        assert surface is not None  # the loss law has one
        return surface.loss_interval(self._optimal_x(), self.asked.worth(self.optimum.tokens))

    def _optimal_x(self) -> float:
        return self.optimum.flops / (FLOPS_PER_UNIT[self.asked.loss_law.scale] * self.optimum.tokens)

    @property
    def epochs(self) -> float | None:
        """How often the best design sees the unique tokens; None where they are not said."""
        unique = self.wish.unique_tokens
        return None if unique is None else self.best.design.tokens / unique


def make_plan(wish: Wish) -> Plan:
    """The plan for a wish. Raises UserError for a budget that is none, or too small, or that fits no device."""
    _check(wish)
    cluster = _priced(wish, wish.cluster) if wish.cluster else _assumed(wish)
    seconds, rounds, kept = _seconds(wish, cluster), 0, False
    if seconds is None:
        assert wish.flops is not None  # `_check`
        if wish.cluster is None:
            cluster = _grown(wish, cluster, wish.flops)
        asked = _asked(wish, cluster, wish.flops)
        found = find(asked, wish.shape, cluster)
    else:
        asked, found, rounds, kept = _affordable(wish, cluster, seconds)
    return Plan(wish, asked, wish.law.optimum(asked.flops), found, wish.cluster is None, rounds, kept)


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
            if place(asked, first(asked, wish.shape), cluster).hours <= ASSUMED_HOURS:
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


def _affordable(wish: Wish, cluster: Cluster, seconds: float) -> tuple[Asked, Found, int, bool]:
    """The designs for the compute that the best of them spends in `seconds`, the rounds that took, and if they stayed.

    The design depends on the compute, its speed on the design, the compute on its speed: round and round until they
    agree to `TOLERANCE`, at first with the design of least loss alone. Where two designs, or two batches, make each
    other the better one for ever, the designs of the closest round, settings settled, stay and get the tokens that they
    have the time for.
    """
    flops = seconds * cluster.count * cluster.device.peak(precision_of(cluster)) * GUESS
    asked = _asked(wish, cluster, flops)
    with contextlib.suppress(UserError):  # it may fit nowhere where a smaller design of nearly its loss does
        flops = _spent(place(asked, first(asked, wish.shape), cluster), seconds)
    tried: list[tuple[float, Asked, Found]] = []
    while len(tried) < ROUNDS:
        # At a limit between two vocabularies, lengths or families they would change every round: soon they stay.
        settled = len(tried) >= SETTLED
        asked = dataclasses.replace(asked, flops=flops, ladder=asked.small) if settled else _asked(wish, cluster, flops)
        found = find(asked, wish.shape, cluster)
        reached = _spent(found.best, seconds)
        if abs(reached / flops - 1) < TOLERANCE:
            return asked, found, len(tried) + 2, False
        tried.append((abs(math.log(reached / flops)), asked, found))
        flops = reached
    _, asked, found = min(tried[SETTLED:], key=lambda one: one[0])
    asked = dataclasses.replace(asked, flops=_spent(found.best, seconds))
    return asked, dataclasses.replace(found, placements=_kept(asked, found.placements)), len(tried) + 2, True


def _spent(one: Placement, seconds: float) -> float:
    """FLOP that a design spends in `seconds` at its speed."""
    return seconds * one.tokens_per_second * one.design.flops_per_token


def _kept(asked: Asked, placements: tuple[Placement, ...]) -> tuple[Placement, ...]:
    """The same models, batches and layouts, with the tokens, the loss and the rate of `asked`; the first stays it."""

    def kept(design: Design) -> Design:
        return dataclasses.replace(design_of(asked, design.model), batch_tokens=design.batch_tokens)

    best, *others = (dataclasses.replace(one, design=kept(one.design)) for one in placements)
    return best, *ranked(others)


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
        mtp=wish.mtp,
    )
