"""Which run next: of the runs that could be made, those that tell most about a target for their FLOP.

Each candidate is judged by how much the variance at the target falls once its loss is known, over what it costs: the
criterion of V-optimal (extrapolation) design, made sequential (MacKay 1992, "Information-based objective functions for
active data selection", section 3.2; Hoel and Levine 1964 for extrapolation). Over several laws the covariance is that
of their mixture, and the update the best linear one: a run on whose loss the laws disagree is worth much where they
disagree at the target. Of the two greedy plans that a budget buys, by gain per FLOP and by gain alone, the better is
taken (Leskovec et al. 2007, CELF, section 3.2), because the first alone may spend all on trifles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from nachim.law.belief import View, view
from nachim.law.candidates import Candidates
from nachim.law.forms import FLOPS_PER_UNIT, Array
from nachim.spec.error import UserError

if TYPE_CHECKING:
    from nachim.law.fit import Fit
    from nachim.law.study import Study

LEVEL = 0.9
LEAST_GAIN = 0.02
"""A plan that narrows the interval by less than this share is no help."""
LEAST_STEP = 1e-9
"""Share of the variance left below which a run tells nothing: the arithmetic ends there."""
RARE = 0.01
"""Share of its law's weight below which a basin is left out."""
LEAST_BEND = 1e-6
"""Curvature of log loss in log x below which an optimum is no optimum (0.0001 % of loss a factor e from it)."""
NUDGE = 0.02
"""Half the step, in log x, of the central differences that find an allocation's slope and curvature."""


@dataclass(frozen=True)
class Target:
    """What is to be known: the `loss` of a model of scale `x` on `tokens`, or of several (then the mean of their
    variances counts); or, at compute `flops`, the `loss` of the best allocation, or that `allocation` (its log x)."""

    what: Literal["loss", "allocation"] = "loss"
    flops: float | None = None
    x: float | Array | None = None
    tokens: float | Array | None = None

    def __post_init__(self) -> None:
        given = (self.flops is not None, self.x is not None, self.tokens is not None)
        if given not in ((True, False, False), (False, True, True)):
            raise UserError("a target is either a compute `flops`, or a real shape: both `x` and `tokens`")
        if self.what == "allocation" and self.flops is None:
            raise UserError("an allocation is known at a compute: give the target's `flops`")
        for name in ("flops", "x", "tokens"):
            value = getattr(self, name)
            if value is not None and not (np.all(np.isfinite(value)) and np.all(np.asarray(value) > 0)):
                raise UserError(f"the target's {name} is {value}: it must be a positive number")
        if np.shape(self.x) != np.shape(self.tokens):
            raise UserError("the target's x and tokens are of different lengths: give one of each for every shape")


@dataclass(frozen=True, eq=False)
class Belief:
    """The joint uncertainty of m candidates and T targets: `covariance` (m, m) of the candidates, `cross` (T, m) of the
    targets with them, the targets' own mean variance `open`, and the variance `noise` of one run."""

    covariance: Array
    cross: Array
    open: float
    noise: float

    @property
    def gain(self) -> Array:
        """By how much each candidate alone lowers the mean variance of the targets, (m,)."""
        return np.asarray((self.cross**2).mean(axis=0) / (np.diag(self.covariance) + self.noise))

    @property
    def least(self) -> float:
        """The mean variance of the targets once every candidate is made."""
        lower = np.linalg.cholesky(self.covariance + (self.noise + self.jitter) * np.eye(len(self.covariance)))
        told = solve_triangular(lower, self.cross.T, lower=True)
        return max(self.open - float((told**2).sum(axis=0).mean()), 0.0)

    @property
    def jitter(self) -> float:
        """What keeps the covariance positive in floating point: 1e-12 of its largest variance."""
        return 1e-12 * float(np.diag(self.covariance).max())


@dataclass(frozen=True)
class Pick:
    """A run to make: row `index` of the candidates, what it `cost`s after those before it, `spent` with them, and the
    target's interval after it, `percent` either way."""

    index: int
    cost: float
    spent: float
    percent: float


@dataclass(frozen=True, eq=False)
class Advice:
    """Which runs next, and when to stop.

    `percent` is the half-width of the target's 90 % interval now; `alone` (m,) what it would be after each candidate
    alone; `gain` (m,) the fall of variance over cost, relative to the best; `order` (m,) ranks candidates by it.
    `picks` is the plan, run after run, up to the budget or the wanted width; `least` is the half-width once every
    candidate is made, and `floor` that of one run's noise, which nothing narrows. `why` says what came of it.
    """

    percent: float
    alone: Array
    gain: Array
    order: npt.NDArray[np.intp]
    picks: tuple[Pick, ...]
    least: float
    floor: float
    helps: bool
    why: str


def believe(reading: Study, runs: Candidates, target: Target) -> Belief:
    """What `reading` leaves open about `target`, a `settled` one, and the candidates, over its laws and their basins by
    weight.

    Where no rollout could weigh the laws, each counts the same: for a design, not to know is no reason for one.
    """
    even = dict.fromkeys(reading.fits, 1 / len(reading.fits))
    shares = reading.weights if reading.errors else even
    views, functionals = [], []
    for name, fit in reading.fits.items():
        sample = fit.sample
        for point, likely in basins(fit):
            u, v, coefficients, mean = sought(fit, point, target)
            sites = (
                np.concatenate([np.log(runs.x / sample.units.x), u]),
                np.concatenate([np.log(runs.tokens / sample.units.tokens), v]),
            )
            share = likely * shares[name]
            views.append(view(fit.law, point, sample.inputs, sample.log_loss, sample.weight, sites, share))
            functionals.append((coefficients, mean))
    return mixed(tuple(views), functionals, len(runs))


def basins(fit: Fit) -> list[tuple[Array, float]]:
    """The minima of `fit` (points), each with its weight, (S / S of the best)^(-n/2): the likelihood of residuals with
    objective S, their scale profiled out. Those of less than RARE are left out."""
    found = fit.certificate.basins
    objective = np.array([basin.objective for basin in found])
    ratio = np.maximum(objective, 1e-300) / max(float(objective[0]), 1e-300)
    weight = np.exp(-0.5 * fit.n * np.log(ratio))
    kept = weight / weight.sum() >= RARE
    return [(found[i].point, float(weight[i] / weight[kept].sum())) for i in np.flatnonzero(kept)]


def mixed(views: tuple[View, ...], functionals: list[tuple[Array, Array | None]], m: int) -> Belief:
    """The mixture of `views`, whose first `m` sites are candidates; the targets are the last sites of each, times its
    coefficients (T, k), and their means (T,) what that gives unless they are given."""
    shares = np.array([each.share for each in views])
    covariance, cross, left, means, goals = np.zeros((m, m)), 0.0, 0.0, [], []
    for each, (coefficients, mean) in zip(views, functionals, strict=True):
        inside = each.covariance
        rows = coefficients @ inside[m:]
        covariance += each.share * inside[:m, :m]
        cross = cross + each.share * rows[:, :m]
        left += each.share * float((rows[:, m:] * coefficients).sum(axis=1).mean())
        means.append(each.mean[:m])
        goals.append(coefficients @ each.mean[m:] if mean is None else mean)
    offsets = np.array(means) - shares @ np.array(means)
    goal = np.array(goals) - shares @ np.array(goals)
    covariance += (shares[:, None] * offsets).T @ offsets
    cross = cross + (shares[:, None] * goal).T @ offsets
    noise = float(shares @ np.array([each.noise**2 for each in views]))
    return Belief(covariance, np.asarray(cross), left + float(shares @ (goal**2).mean(axis=1)), noise)


def settled(target: Target, fit: Fit, runs: Candidates) -> Target:
    """`target`, a loss at a compute being that of the model which `fit` would build: every law is asked for that one.

    To first order the loss of the best allocation moves as that of this one does. A fit to few runs may want a model of
    next to no size, or no tokens: this one has no more and no fewer tokens for its scale than a run made or offered.
    """
    if target.flops is None or target.what == "allocation":
        return target
    (u, v), units = fit.sample.inputs[:2], fit.sample.units
    ratio = np.append(np.exp(v - u) * units.tokens / units.x, runs.tokens / runs.x)
    product = target.flops / FLOPS_PER_UNIT[fit.scale]
    x = float(
        np.clip(fit.allocation(target.flops)[0], math.sqrt(product / ratio.max()), math.sqrt(product / ratio.min()))
    )
    return Target(x=x, tokens=product / x)


def sought(fit: Fit, point: Array, target: Target) -> tuple[Array, Array, Array, Array | None]:
    """Sites (log x and log D, each (k,), normalised) and coefficients (T, k) whose products are the targets, by the
    law of `fit` at `point`; and their means (T,) where those are other.

    For an allocation, the minimum of log loss h along log x at fixed compute moves by -dh'/h'' when h changes by dh: a
    central difference over two sites, whatever the law. One of less than a parameter or a token is held there.
    """
    law, units = fit.law, fit.sample.units
    if target.flops is None:
        u, v = np.log(np.atleast_1d(target.x) / units.x), np.log(np.atleast_1d(target.tokens) / units.tokens)
        return u, v, np.eye(len(u)), None
    product = target.flops / FLOPS_PER_UNIT[fit.scale]
    x = float(law.allocation(law.coefficients(point, units), target.flops, fit.scale)[0])
    inside = min(max(x, 1.0), product)
    three = math.log(inside / units.x) + NUDGE * np.array([-1.0, 0.0, 1.0])
    rest = math.log(product / units.x / units.tokens) - three
    h = law.value(point, three, rest)
    bend = max(float(h[0] - 2 * h[1] + h[2]) / NUDGE**2, LEAST_BEND)
    moves = np.array([[1.0, 0.0, -1.0]]) / (2 * NUDGE * bend) if inside == x else np.zeros((1, 3))
    return three, rest, moves, np.array([math.log(inside)])


def next_runs(
    reading: Study, runs: Candidates, target: Target, *, within: float | None = None, budget: float | None = None
) -> Advice:
    """Which of `runs` to make next, so that `target` is known best for its cost.

    `within` ends the plan where the half-width of the target's 90 % interval is so many percent; `budget` where the
    costs would exceed it. Without either the plan goes on as long as any run helps. Raises UserError for a target or
    limits that make no sense.
    """
    for name, value in (("within", within), ("budget", budget)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} is {value:g}: it must be a positive number")
    target = settled(target, reading.fit, runs)
    belief = believe(reading, runs, target)
    ruler = Ruler(*known(reading, target), belief.open)
    now, least, first = ruler.reach(belief.open), ruler.reach(belief.least), belief.gain
    rate = first / runs.charged()
    enough = math.log1p(within / 100) if within is not None else least / (1 - LEAST_GAIN)
    picks, spent = [], 0.0
    for index, cost, left in best_plan(belief, runs, ruler.variance(enough), budget, wanted=within is not None):
        spent += cost
        picks.append(Pick(index, cost, spent, ruler.percent(left)))
    advice = Advice(
        percent=ruler.percent(belief.open),
        alone=np.array([ruler.percent(left) for left in belief.open - first]),
        gain=rate / rate.max() if rate.max() > 0 else rate,
        order=np.argsort(-rate, kind="stable"),
        picks=tuple(picks),
        least=ruler.percent(belief.least),
        floor=ruler.percent(0.0),
        helps=bool(picks) and least < (1 - LEAST_GAIN) * now,
        why="",
    )
    return replace(advice, why=said(advice, runs, within, budget))


@dataclass(frozen=True)
class Ruler:
    """Between the variance of a target and the half-width of its interval, which is `now` (in logs) at the variance
    `open` and `floor` at none.

    The reading's own interval is calibrated, and the belief's variances are not: what a run takes off is a share.
    """

    now: float
    floor: float
    open: float

    def reach(self, variance: float) -> float:
        """Half-width in logs for `variance` of log loss, or of log x."""
        share = max(variance, 0.0) / self.open if self.open > 0 else 0.0
        return math.sqrt(self.floor**2 + (self.now**2 - self.floor**2) * share)

    def percent(self, variance: float) -> float:
        """The half-width in percent, as far as a float holds it."""
        return 100 * math.expm1(min(self.reach(variance), 50.0))

    def variance(self, reach: float) -> float:
        """The variance that has this half-width in logs: negative where `floor` is wider, any where nothing is open."""
        room = self.now**2 - self.floor**2
        return self.open * (reach**2 - self.floor**2) / room if room > 0 else math.inf


def known(reading: Study, target: Target) -> tuple[float, float]:
    """Half-width in logs of the 90 % interval that `reading` gives of `target`, and what run noise alone makes of it.

    A loss is that of one run, so its noise is part of it; an allocation has none. Of several losses it is the root mean
    square.
    """
    if target.flops is not None:
        low, high = reading.allocation(target.flops).x_interval
        return 0.5 * math.log(high / low), 0.0
    _, low, high = reading.predict(np.atleast_1d(target.x), np.atleast_1d(target.tokens), LEVEL)
    now = 0.5 * math.sqrt(float((np.log(high / low) ** 2).mean()))
    return now, min(now, NormalDist().inv_cdf((1 + LEVEL) / 2) * reading.noise)


Step = tuple[int, float, float]
"""A candidate, its cost at its place, and the target's variance after it."""


def greedy(belief: Belief, runs: Candidates, goal: float, budget: float, by_cost: bool) -> list[Step]:
    """Candidates one after the other, each the one that lowers the targets' variance most, per cost or outright.

    Ends at the variance `goal`, at the `budget`, or when none helps. Each pick is a rank-one update of the covariance,
    kept as its factors: O(m·picks) a pick.
    """
    variance, cross, left = np.diag(belief.covariance).copy(), belief.cross.copy(), belief.open
    factors = np.empty_like(belief.covariance)
    steps: list[Step] = []
    chosen: list[int] = []
    spent = 0.0
    while left > goal and len(chosen) < len(runs):
        cost = np.maximum(runs.charged(chosen), 1e-300)
        gain = (cross**2).mean(axis=0) / (variance + belief.noise)
        gain[chosen] = 0.0
        gain[cost > (budget - spent) * (1 + 1e-9)] = 0.0
        pick = int(np.argmax(gain / cost if by_cost else gain))
        if gain[pick] <= LEAST_STEP * left:
            break
        scale = math.sqrt(variance[pick] + belief.noise)
        known = factors[: len(chosen)]
        column = (belief.covariance[pick] - known[:, pick] @ known) / scale
        share = cross[:, pick] / scale
        variance = np.maximum(variance - column**2, 0.0)
        cross, left = cross - share[:, None] * column, max(left - float((share**2).mean()), 0.0)
        factors[len(chosen)] = column
        chosen.append(pick)
        spent += float(cost[pick])
        steps.append((pick, float(cost[pick]), left))
    return steps


def best_plan(belief: Belief, runs: Candidates, goal: float, budget: float | None, wanted: bool) -> list[Step]:
    """The better of the plans by gain per cost and by gain alone: the cheaper of two that reach the `goal`, else the
    one that comes nearer. Without a budget or a `wanted` goal there is nothing to trade, and cost decides alone."""
    ways = (True, False) if wanted or budget is not None else (True,)
    plans = [greedy(belief, runs, goal, budget or math.inf, by_cost) for by_cost in ways]
    reached = [bool(plan) and plan[-1][2] <= goal for plan in plans]
    if all(reached):
        return min(plans, key=lambda plan: sum(step[1] for step in plan))
    return min(plans, key=lambda plan: plan[-1][2] if plan else belief.open)


def said(advice: Advice, runs: Candidates, within: float | None, budget: float | None) -> str:
    """What came of it, in a sentence."""
    now, least = advice.percent, advice.least
    every = f"all {len(runs)} candidates together would leave ±{least:.3g} %"
    if within is not None and now <= within:
        return f"the target is known to ±{now:.3g} % already: no further run is needed for ±{within:g} %"
    if not advice.helps:
        return (
            f"no candidate helps: the target is known to ±{now:.3g} %, and {every} (a single run scatters by "
            f"±{advice.floor:.3g} %); offer runs nearer to the target"
        )
    last = advice.picks[-1]
    count = f"{len(advice.picks)} run{'s' if len(advice.picks) > 1 else ''}"
    if within is not None and last.percent > within * (1 + 1e-9):
        short = f"the budget of {budget:.3g} buys ±{last.percent:.3g} %" if budget else every
        return f"±{within:g} % is out of reach: the target is known to ±{now:.3g} % now, and {short}"
    return (
        f"±{last.percent:.3g} % at the target costs {last.spent:.3g} more, in {count}; it is known to ±{now:.3g} % now"
    )
