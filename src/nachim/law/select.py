"""Choosing by growing-budget rollouts: fit cheap runs, forecast dearer ones, count the misses.

What is chosen among are *views*: a law, fitted under a focus. Far from the next budget no law is exact (tiny, starved
or badly tuned runs lie off any surface), so a focus lets the runs near it count more; where a law is exact that only
costs precision. Which holds is not known beforehand: the rollouts weigh all views, and tell by how much their mean is
steadily off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.law.fit import shortfall, solve_many
from nachim.law.forms import Array, Law, Sample, Units
from nachim.law.interval import half_width, noise_sd, noise_under
from nachim.law.solve import DELTA, minimise

CUTS = 5
STARTS = 4
SPARE = 4
LEAST_SHARE = 0.4
"""A rollout fits at least this share of the runs: fits to far fewer do not behave like the fit to all."""
SHARPNESS = 6.0
"""A view's share falls with this power of its rollout error: a quarter more error, a quarter of the share."""
SAME_BUDGET = 1.1
"""A budget spans 10 % of FLOPs."""
REFOCUS = ((0.03, 6), (DELTA, 25))
"""Huber losses and steps from the plain fit to one under a focus."""
STEADY = 4
"""How many of the last cuts must agree for a drift."""


@dataclass(frozen=True)
class Focus:
    """How much a run counts: 1 / (1 + (e / depth)²) · exp(-a / memory), where e is its log loss above the best of the
    runs that cost no more, and a the log of the dearest compute over its own."""

    depth: float
    memory: float

    def weight(self, excess: Array, age: Array, least: float) -> Array:
        """Weights (n,) for `excess` e and `age` a, (n,); the focus is widened until they are worth `least` runs,
        (sum w)² / sum w²."""
        wider = 1.0
        while True:
            weight = 1 / (1 + (excess / (wider * self.depth)) ** 2) * np.exp(-age / (wider * self.memory))
            if wider > 1e3 or weight.sum() ** 2 >= least * (weight**2).sum():
                return np.asarray(weight)
            wider *= 1.5


FOCI = tuple(Focus(depth, memory) for depth, memory in itertools.product((math.inf, 0.05), (math.inf, 1.5)))
"""All runs alike; the later half decade of compute; runs within 5 % of the best of their cost; both."""


@dataclass(frozen=True, eq=False)
class Views:
    """A law fitted r times, its inputs in `units`: `points` (r, size) with their `covariance` (r, size, size), the run
    noise of each (r,) in log units, how far Student's tails widen it `tails` (r,), and its focus' `depth` (r,)."""

    law: Law
    units: Units
    points: Array
    covariance: Array
    noise: Array
    tails: Array
    depth: Array

    def at(self, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        """Log loss (r, n) at normalised log `inputs`, each (n,), and its standard deviation from the parameters."""
        value, slope, _ = self.law.expand(self.points, *inputs)
        variance = np.einsum("rpn,rpq,rqn->rn", slope, self.covariance, slope)
        return value, np.sqrt(np.maximum(variance, 0.0))

    def spread(self, by_parameters: Array, excess: Array) -> Array:
        """Standard deviation (r, n) of one run, for `excess` (r, n) or (n,): a run far above the best is less regular,
        as the focus supposes."""
        by_noise = self.noise[:, None] ** 2 * (1 + (excess / self.depth[:, None]) ** 2)
        return np.asarray(self.tails[:, None] * np.sqrt(by_parameters**2 + by_noise))


def look(law: Law, sample: Sample, weights: Array, points: Array, noise: float, depth: Array) -> Views:
    """The fits at `points` (r, size) under `weights` (r, n), with what they leave open; `noise` is a floor.

    The covariance is that of weighted least squares, with a prior of standard deviation 1 on every coordinate: the
    coordinates are logs, exponents and shares of the mean loss, so 1 is loose, and it keeps flat directions finite.
    """
    value, slope, _ = law.expand(points, *sample.inputs)
    found = [noise_under(sample.log_loss - v, w, law.size) for v, w in zip(value, weights, strict=True)]
    sd = np.maximum([each[0] for each in found], max(noise, 1e-7))
    scaled = slope * np.sqrt(weights)[:, None, :] / sd[:, None, None]
    loose = np.eye(law.size) if law.prior is None else np.eye(law.size) + np.diag(law.prior.precision)
    information = scaled @ scaled.swapaxes(1, 2) + loose
    return Views(
        law, sample.units, points, np.linalg.inv(information), sd, np.array([each[1] for each in found]), depth
    )


def weights_of(sample: Sample, flops: Array, used: npt.NDArray[np.bool_], law: Law) -> Array:
    """Weights (foci, n) of the runs in `used` under every focus; 0 for the others."""
    above = excess(flops, sample.log_loss, used)
    age = np.log(flops[used].max() / flops)
    given = np.where(used, sample.weight, 0.0)
    found = np.zeros((len(FOCI), len(flops)))
    for row, focus in enumerate(FOCI):
        found[row, used] = focus.weight(above[used], age[used], law.size + SPARE)
    return found * given


def excess(flops: Array, log_loss: Array, used: npt.NDArray[np.bool_]) -> Array:
    """Log loss above the best of the `used` runs that cost no more, (n,); at least 0."""
    order = np.flatnonzero(used)[np.argsort(flops[used], kind="stable")]
    best = np.minimum.accumulate(log_loss[order])
    place = np.searchsorted(flops[order], SAME_BUDGET * flops, side="right") - 1
    return np.maximum(log_loss - best[np.maximum(place, 0)], 0.0)


def refocus(law: Law, sample: Sample, weights: Array, plain: Array) -> Array:
    """Points (m, foci, size) under `weights` (m, foci, n), from the `plain` fits (m, size) of the first focus."""
    cuts, foci, n = weights.shape
    points = np.repeat(plain[:, None], foci, axis=1)
    others = weights[:, 1:].reshape(-1, n)
    target = np.broadcast_to(sample.log_loss, others.shape)
    moved = points[:, 1:].reshape(len(others), -1)
    for delta, steps in REFOCUS:
        moved, _ = minimise(law, sample.inputs, target, others, moved, delta=max(delta, law.delta), steps=steps)
    points[:, 1:] = moved.reshape(cuts, foci - 1, -1)
    return points


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Forecasts of dearer runs from cheaper ones, for m cuts and n runs sorted as the observations are.

    `cuts` (m,) is the largest FLOPs that was fitted, `ahead` (m, n) marks the dearer runs, `actual` (n,) is their log
    loss (normalised) and `above` (n,) its excess; `budget` (n,) is the number of each run's budget. By law, `means` and
    `spreads` (m, foci, n) are the forecast of each view and its standard deviation for one run, `noise` (m,) the
    root mean square residual of the plain view.
    """

    cuts: Array
    ahead: npt.NDArray[np.bool_]
    flops: Array
    actual: Array
    above: Array
    budget: npt.NDArray[np.intp]
    means: Mapping[str, Array]
    spreads: Mapping[str, Array]
    noise: Mapping[str, Array]

    @property
    def far(self) -> Array:
        """How far each forecast extrapolates, log(C / C at the cut), (m, n); 0 for runs that were fitted."""
        return np.where(self.ahead, np.log(self.flops / self.cuts[:, None]), 0.0)

    @property
    def trust(self) -> Array:
        """How much each forecast counts (m, n): by how far it extrapolates; every cut sums to 1."""
        return self.far / self.far.sum(axis=1, keepdims=True)

    @property
    def late(self) -> Array:
        """How much each cut counts (m,): the dearest once, each cheaper one half as much as the next, for the last is
        most like the forecast that is made of all runs."""
        return 0.5 ** np.arange(len(self.cuts))[::-1]

    def mean(self, shares: Shares) -> Array:
        """Forecast (m, n) of the views by their `shares`."""
        parts = [np.einsum("f,mfn->mn", share, self.means[name]) for name, share in shares.items()]
        return np.sum(parts, axis=0)

    def error(self, law: str, shares: Shares) -> float:
        """Mean absolute log error of a law, its foci by share, each forecast weighted by how far it extrapolates."""
        off = self.actual - self.mean(only(shares, law))
        return float((self.far * np.abs(off)).sum() / self.far.sum())

    def reach(self, centre: Array, shares: Shares, level: float = 0.9) -> Array:
        """Half-width (m, n) of the band of one run around `centre` (m, n), before it is calibrated."""
        share = np.concatenate(list(shares.values()))
        means = np.concatenate([self.means[name] for name in shares], axis=1)
        spreads = np.concatenate([self.spreads[name] for name in shares], axis=1)
        return half_width(level, centre, means.swapaxes(0, 1), spreads.swapaxes(0, 1), share)


Shares = Mapping[str, Array]
"""By law, the share (foci,) of each of its views; all sum to 1."""


def budgets(flops: Array) -> npt.NDArray[np.intp]:
    """Number of each run's budget, (n,), from the cheapest; a budget spans 10 % of FLOPs."""
    label = np.empty(len(flops), dtype=np.intp)
    number, floor = -1, 0.0
    for run in np.argsort(flops, kind="stable"):
        if number < 0 or flops[run] > SAME_BUDGET * floor:
            number, floor = number + 1, flops[run]
        label[run] = number
    return label


def choose_cuts(laws: Mapping[str, Law], samples: Mapping[str, Sample], flops: Array) -> Array:
    """Up to CUTS compute values, even in log C, below which lie LEAST_SHARE of the runs and enough to
    determine every law with SPARE runs to spare, and above which two or more runs lie. A row given twice is one run."""
    label = budgets(flops)
    tops = np.array([flops[label == number].max() for number in range(label.max() + 1)])
    sample = next(iter(samples.values()))
    weight, distinct = sample.weight, np.zeros(len(flops), dtype=bool)
    distinct[np.unique(np.stack([*sample.inputs, sample.log_loss]), axis=1, return_index=True)[1]] = True
    enough = max(LEAST_SHARE * distinct.sum(), *(law.size + SPARE for law in laws.values()))
    fit = []
    for top in tops:
        cheap = (flops <= top) & (weight > 0)
        if (
            (cheap & distinct).sum() >= enough
            and (flops > top).sum() >= 2
            and not any(shortfall(samples[name], law, cheap) for name, law in laws.items())
        ):
            fit.append(top)
    if not fit:
        return np.empty(0)
    wanted = np.geomspace(fit[0], fit[-1], CUTS)
    return np.unique([min(fit, key=lambda top: abs(np.log(top / want))) for want in wanted])


def roll(laws: Mapping[str, Law], samples: Mapping[str, Sample], flops: Array, noise: float = 0.0) -> Rollouts:
    """Fit every view on the runs up to each cut and forecast the dearer ones; no cut fits leaves m = 0.

    `noise` is the run noise that was measured, a floor of the residuals' own.
    """
    cuts = choose_cuts(laws, samples, flops)
    first = next(iter(samples.values()))
    used = (flops <= cuts[:, None]) & (first.weight > 0)
    above = excess(flops, first.log_loss, first.weight > 0)
    means, spreads, noises = {}, {}, {}
    for name, law in laws.items():
        sample, shape = samples[name], (len(cuts), len(FOCI), len(flops))
        means[name] = spreads[name] = np.empty(shape)
        noises[name] = np.empty(len(cuts))
        if not len(cuts):
            continue
        weights = np.array([weights_of(sample, flops, row, law) for row in used])
        plain, _, _ = solve_many(law, sample, weights[:, 0], STARTS)
        points = refocus(law, sample, weights, plain).reshape(-1, law.size)
        depth = np.tile([focus.depth for focus in FOCI], len(cuts))
        views = look(law, sample, weights.reshape(-1, len(flops)), points, noise, depth)
        mean, sd = views.at(sample.inputs)
        means[name], spreads[name] = mean.reshape(shape), views.spread(sd, above).reshape(shape)
        off = sample.log_loss - means[name][:, 0]
        noises[name] = np.array([noise_sd(r[u], law.size) for r, u in zip(off, used, strict=True)])
    ahead = (flops > cuts[:, None]) & (first.weight > 0)
    return Rollouts(cuts, ahead, flops, first.log_loss, above, budgets(flops), means, spreads, noises)


def view_shares(rollouts: Rollouts, laws: Mapping[str, Law]) -> dict[str, Array]:
    """The share of every view, by its rollout error to the power -SHARPNESS, the cuts counting as `late` says; all on
    the plain view of the law of fewest coefficients where there is no cut."""
    plain = np.eye(len(FOCI))[0]
    if not len(rollouts.cuts):
        simplest = min(laws, key=lambda name: laws[name].size)
        return {name: plain * (name == simplest) for name in laws}
    merit, late = {}, rollouts.late / rollouts.late.sum()
    for name in laws:
        off = np.abs(rollouts.actual - rollouts.means[name])
        score = late @ (rollouts.trust[:, None] * off).sum(axis=2)
        merit[name] = (score + 1e-9) ** -SHARPNESS
    total = sum(each.sum() for each in merit.values())
    return {name: each / total for name, each in merit.items()}


def law_weights(shares: Shares, among: Collection[str] | None = None) -> dict[str, float]:
    """The share of each law, all its views together: of those `among` which it is asked, these summing to 1."""
    weights = {name: float(share.sum()) for name, share in shares.items() if among is None or name in among}
    total = sum(weights.values())
    return {name: weight / total if total > 0 else 1 / len(weights) for name, weight in weights.items()}


def only(shares: Shares, law: str) -> dict[str, Array]:
    """The shares when only the views of `law` count; even ones where it had none."""
    total = shares[law].sum()
    own = shares[law] / total if total > 1e-300 else np.full(len(FOCI), 1 / len(FOCI))
    return {law: own}


def alike(laws: Mapping[str, Law]) -> dict[str, Array]:
    """The same share for every view: what is known without rollouts."""
    even = 1 / (len(laws) * len(FOCI))
    return {name: np.full(len(FOCI), even) for name in laws}


def favoured(shares: Shares, law: str) -> dict[str, Array]:
    """The shares when `law` was asked for by name: it keeps at least half, the others share the rest."""
    weight = law_weights(shares)[law]
    keeps = max(weight, 0.5)
    shrink = (1 - keeps) / max(1 - weight, 1e-12)
    return {name: keeps * only(shares, law)[law] if name == law else shrink * share for name, share in shares.items()}


@dataclass(frozen=True)
class Drift:
    """By how much, in log loss, measured runs lie beyond their forecast, at `reach` (in log C) past what was fitted."""

    shift: float
    reach: float

    def at(self, far: Array) -> Array:
        """The correction for forecasts that reach `far` (in log C): none inside the fitted range, never more than was
        seen."""
        return self.shift * np.clip(far / self.reach, 0.0, 1.0)


def drift(rollouts: Rollouts, forecast: Array, cut: int | None = None) -> Drift:
    """How far off `forecast` (m, n) steadily was at the last STEADY cuts, as known at `cut` (None: with all runs).

    Where the law bends away from the runs, every forecast is off in the same direction. The mean b of the cuts' median
    errors is shrunk to b·max(0, 1 - 2·s²/b²), s being their standard deviation (the positive-part rule of James and
    Stein, 1961): errors that only scatter leave nothing.
    """
    end = len(rollouts.cuts) if cut is None else cut
    known = rollouts.flops <= (np.inf if cut is None else rollouts.cuts[cut])
    off, reach = [], []
    for past in range(max(0, end - STEADY), end):
        seen = rollouts.ahead[past] & known
        if seen.any():
            off.append(np.median((rollouts.actual - forecast[past])[seen]))
            reach.append(rollouts.far[past][seen].mean())
    if len(off) < STEADY:
        return Drift(0.0, 1.0)
    mean, variance = float(np.mean(off)), float(np.var(off, ddof=1))
    shrink = max(0.0, 1 - 2 * variance / max(mean**2, 1e-24))
    return Drift(shrink * mean, float(np.mean(reach)))


def rollout_scores(rollouts: Rollouts, lead: Shares, shares: Shares) -> tuple[Array, Array]:
    """Of every forecast made, |error| over the half-width of its 90 % band, and how much it counts; flat arrays.

    The forecast is the mean by the shares `lead`, with the drift that was known at its cut; the band is that of all
    views by `shares`.
    """
    if not len(rollouts.cuts):
        return np.empty(0), np.empty(0)
    counts = rollouts.late[:, None] * rollouts.trust
    mean = rollouts.mean(lead)
    shift = np.array([drift(rollouts, mean, cut).at(rollouts.far[cut]) for cut in range(len(rollouts.cuts))])
    scores = np.abs(rollouts.actual - mean - shift) / np.maximum(rollouts.reach(mean, shares), 1e-12)
    return scores[rollouts.ahead], counts[rollouts.ahead]
