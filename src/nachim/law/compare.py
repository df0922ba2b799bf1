"""What an idea is worth: how many times more compute the baseline needs to reach the idea's loss, at each scale.

Both ladders are fitted at once. The idea's run of scale x on D tokens does what the baseline would do with m times the
compute, spent along the baseline's own expansion path:

    log L_idea(x, D) = log L_base(x·m^a, D·m^b),   a + b = 1,   log m = level + trend·log(C / C0) + tilt·t

where C is what the idea's run itself costs, and t how far it lies from the optimal shape, log(D/x) - log(D*/x*): an
idea that makes tokens worth more is worth more where tokens are few, and what is reported is its worth at the optimum.
A pair of runs (same shape, tokens and seed) enters as its difference, in which noise that both share is gone, and as
its mean, which only shapes the baseline's law; the two are independent, so each is weighted by its own noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from nachim.law.forms import Array
from nachim.law.interval import MAD
from nachim.law.observe import Observations
from nachim.law.pairs import Rows, Runs, match, stacked
from nachim.law.robust import Robust
from nachim.law.surface import Surface, surface_of
from nachim.spec.error import UserError

FEWEST = 4
"""Runs that each ladder has at least."""
FURTHEST = 1e3
"""Largest multiplier, and largest loss of compute, that is looked for; no interval reaches farther."""
VAGUE = 10.0
"""An interval whose ends are this many times apart tells next to nothing."""
TREND_SPAN = 1.5
"""A trend is fitted to runs whose compute differs at least by this factor."""
TILT_RUNS = 10
"""A tilt is fitted to as many runs of the idea, if they lie on both sides of the optimal shape."""
OUTLYING = 6.0
"""A pair this many robust standard deviations off is pointed at."""
SCALES = 9
PASSES = 3
STEP = 1e-4


@dataclass(frozen=True, eq=False)
class Worth:
    """What an idea is worth against a baseline, with 95 % intervals.

    `multiplier` is at `at_flops`, the compute where the ladders tell most: the best estimate of a constant one. `p` is
    the chance of one so far from 1 were the idea worth nothing, `q` the same with all ideas of a comparison in view.
    `trend` is the slope of log multiplier against log compute, with its interval, p and q; None where all runs cost
    the same. `span` is the compute, FLOP, that both ladders cover. `noise` is the standard deviation, in log loss, of a
    pair's difference (of a run, where nothing is paired). `points` (pairs, 2) are FLOP and multiplier of each pair.
    """

    multiplier: float
    low: float
    high: float
    p: float
    at_flops: float
    trend: float | None
    trend_interval: tuple[float, float] | None
    trend_p: float | None
    span: tuple[float, float]
    pairs: int
    unpaired: int
    chains: int
    law: str
    noise: float
    points: Array
    notes: tuple[str, ...]
    solved: Robust
    centre: float
    surface: Surface
    q: float
    trend_q: float | None

    def at(self, flops: Array) -> tuple[Array, Array, Array]:
        """The multiplier at compute `flops` (n,), and the ends of its 95 % interval."""
        away = np.log(flops) - self.centre
        rows = [self.solved.interval(_at(self.solved, each, self.trend is not None)) for each in away]
        value, low, high = _multiplier(np.array(rows)).T
        return value, low, high

    @property
    def scales(self) -> Array:
        """Compute values, even in ratio, over the range that both ladders cover, (n,)."""
        return np.geomspace(*self.span, SCALES) if self.trend is not None else np.array([self.at_flops])


@dataclass(frozen=True, eq=False)
class _Model:
    """Both ladders as one least-squares problem: point = level, then trend, tilt where fitted, then the law's."""

    runs: Runs
    rows: Rows
    surface: Surface
    trending: bool = field(init=False)
    tilting: bool = field(init=False)

    def __post_init__(self) -> None:
        flops, tilt = self.runs.log_flops[self.runs.idea], self.tilt[self.runs.idea]
        object.__setattr__(self, "trending", bool(np.ptp(flops) > np.log(TREND_SPAN)))
        object.__setattr__(self, "tilting", bool(len(tilt) >= TILT_RUNS and tilt.min() < 0 < tilt.max()))

    @cached_property
    def centre(self) -> float:
        """Log of C0: the mean of the idea's runs."""
        return float(self.runs.log_flops[self.runs.idea].mean())

    @cached_property
    def tilt(self) -> Array:
        """How far each run lies from the optimal shape at its compute, (n,)."""
        return self.surface.offset(self.runs.log_x, self.runs.log_tokens)

    @property
    def effects(self) -> int:
        """Coefficients of the idea, before the law's."""
        return 1 + self.trending + self.tilting

    @cached_property
    def columns(self) -> Array:
        """What the idea's coefficients are multiplied with, (effects, n): zeros for the baseline's runs."""
        columns = [np.ones(len(self.tilt))]
        columns += [self.runs.log_flops - self.centre] * self.trending + [self.tilt] * self.tilting
        return np.where(self.runs.idea, np.array(columns), 0.0)

    def log_multiplier(self, point: Array) -> Array:
        """Log m of each run, (n,): 0 for the baseline's."""
        found: Array = point[: self.effects] @ self.columns
        return found

    def expand(self, point: Array) -> tuple[Array, Array, Array]:
        """Log loss of each run (n,), its slope in the point (n, size), and its slope in log compute (n,)."""
        log_m, law, a = self.log_multiplier(point), point[self.effects :], self.surface.share
        ends = [
            self.surface.expand(law, self.runs.log_x + a * each, self.runs.log_tokens + (1 - a) * each)
            for each in (log_m, log_m - STEP, log_m + STEP)
        ]
        value, slope = ends[0]
        fall = (ends[2][0] - ends[1][0]) / (2 * STEP)
        return value, np.concatenate([self.columns * fall, slope]).T, fall

    def solve(self) -> tuple[Robust, Array]:
        """The fit, and the noise (difference, mean, single) that it found and was weighted by."""
        weight = np.sqrt(self.rows.weights(self.runs.weight))
        limits = [np.log(FURTHEST), 3.0, 3.0][: self.effects]
        low = np.concatenate([np.negative(limits), self.surface.low])
        high = np.concatenate([limits, self.surface.high])
        point = np.clip(np.concatenate([np.zeros(self.effects), self.surface.start]), low + 1e-9, high - 1e-9)
        noise, scale = np.ones(3), np.ones(len(weight))
        for _ in range(PASSES):

            def off(point: Array, scale: Array = scale) -> Array:
                return weight / scale * self.rows.of(self.expand(point)[0] - self.runs.log_loss)

            def slope(point: Array, scale: Array = scale) -> Array:
                return (weight / scale)[:, None] * self.rows.of(self.expand(point)[1])

            found = optimize.least_squares(off, point, slope, (low, high), x_scale="jac", ftol=1e-9, xtol=1e-9)
            point = found.x
            noise = self._noise(found.fun * scale, found.jac)
            scale = np.repeat(noise, [len(self.rows.base), len(self.rows.base), len(self.rows.single)])
        free = np.where(found.active_mask == 0, found.jac, 0.0)
        return Robust(point, free, -found.fun, self.rows.cluster), noise

    def _noise(self, residual: Array, slope: Array) -> Array:
        """Standard deviation of differences, means and singles, each (one a kind), never quite 0.

        A kind's degrees of freedom are its rows less their leverage: the law may bend to suit few differences, and a
        noise that did not count that would draw it on until nothing was left of them.
        """
        basis, size, _ = np.linalg.svd(slope, full_matrices=False)
        leverage = (basis[:, size > 1e-10 * size[0]] ** 2).sum(axis=1)
        kinds = (np.split(column, [len(self.rows.base), 2 * len(self.rows.base)]) for column in (residual**2, leverage))
        sums = [(squares.sum(), max(0.5, len(squares) - used.sum())) for squares, used in zip(*kinds, strict=True)]
        return np.maximum([np.sqrt(total / freedom) for total, freedom in sums], 1e-7)

    def points(self, solved: Robust, noise: Array) -> Array:
        """FLOP and multiplier of each pair alone, (pairs, 2), by the law's slope at its place."""
        idea = self.rows.idea
        steep = -self.expand(solved.point)[2][idea]
        miss = -solved.residual[: len(idea)] * noise[0]
        log_m = self.log_multiplier(solved.point)[idea] + miss / np.maximum(steep, 1e-9)
        return np.stack([np.exp(self.runs.log_flops[idea]), np.exp(np.clip(log_m, -20, 20))], axis=1)


def compare_all(base: Observations, ideas: Mapping[str, Observations]) -> dict[str, Worth]:
    """Each idea against one baseline, false discoveries controlled over all of them by `Worth.q`, and over all trends
    by `Worth.trend_q`.

    q is Benjamini and Hochberg's (1995); that the tests share a baseline makes them depend on each other positively,
    which their control allows (Benjamini and Yekutieli 2001). Raises UserError, naming the idea, when one cannot be
    compared.
    """
    found = {}
    for name, idea in ideas.items():
        try:
            found[name] = compare(base, idea)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    q = _controlled({name: worth.p for name, worth in found.items()})
    trends = _controlled({name: worth.trend_p for name, worth in found.items() if worth.trend_p is not None})
    return {name: replace(worth, q=q[name], trend_q=trends.get(name)) for name, worth in found.items()}


def _controlled(p: Mapping[str, float]) -> dict[str, float]:
    """Benjamini and Hochberg's q of each p-value."""
    return dict(zip(p, stats.false_discovery_control(list(p.values())).tolist(), strict=True)) if p else {}


def compare(base: Observations, idea: Observations) -> Worth:
    """The worth of `idea` against `base`: two ladders, paired where a run of each has the same shape, tokens and seed.

    Runs of one `group` and `seed` are taken to share noise, as those of one trunk do; without a group, every run is
    taken as independent. Raises UserError when the ladders do not overlap in compute, or cannot tell anything.
    """
    runs = stacked(base, idea)
    counts = int((~runs.idea).sum()), int(runs.idea.sum())
    if min(counts) < FEWEST:
        raise UserError(
            f"the baseline has {_runs(counts[0])} and the idea {_runs(counts[1])}: at least {FEWEST} of each are "
            "needed to tell an idea from run noise"
        )
    span, rows = runs.span, match(runs)
    if len(rows.base) and not rows.of(runs.log_loss)[: len(rows.base)].any():
        raise UserError("every run of the idea has the loss of the baseline's, digit for digit: they are the same runs")
    model = _Model(runs, rows, surface_of(runs))
    solved, noise = model.solve()
    return _told(model, solved, noise, span)


def _told(model: _Model, solved: Robust, noise: Array, span: tuple[float, float]) -> Worth:
    if abs(solved.point[0]) > 0.98 * np.log(FURTHEST):
        raise UserError(
            f"no multiplier of compute within {FURTHEST:g} makes up for the difference between the ladders: are both "
            "losses of the same text, in the same unit?"
        )
    away = _most_telling(model, solved, span)
    here = _at(solved, away, model.trending)
    value, low, high = _multiplier(np.array(solved.interval(here)))
    slope = _unit(solved, 1) if model.trending else None
    rising = solved.interval(slope) if slope is not None else None
    p, trend_p = solved.p_value(here), solved.p_value(slope) if slope is not None else None
    points = model.points(solved, noise)
    return Worth(
        multiplier=float(value),
        low=float(low),
        high=float(high),
        p=p,
        at_flops=float(np.exp(model.centre + away)),
        trend=rising and rising[0],
        trend_interval=rising and rising[1:],
        trend_p=trend_p,
        span=span,
        pairs=len(model.rows.base),
        unpaired=len(model.rows.single),
        chains=len(np.unique(model.rows.cluster)),
        law=model.surface.name,
        noise=float(noise[0] if len(model.rows.base) else noise[2]),
        points=points,
        notes=tuple(_notes(model, solved, points, float(high / low))),
        solved=solved,
        centre=model.centre,
        surface=model.surface,
        q=p,
        trend_q=trend_p,
    )


def _most_telling(model: _Model, solved: Robust, span: tuple[float, float]) -> float:
    """How far from the centre, in log C, level and trend are not correlated: where the multiplier is known best."""
    if not model.trending:
        return 0.0
    bread = solved.bread
    low, high = np.log(span) - model.centre
    return float(np.clip(-bread[0, 1] / bread[1, 1], low, high))


def _notes(model: _Model, solved: Robust, points: Array, width: float) -> list[str]:
    """What a reader should beware of; `width` is the ratio of the interval's ends."""
    found, rows, runs = [], model.rows, model.runs
    if rows.single.size:
        found.append(
            f"{_runs(rows.single.size)} without a partner of the same shape, tokens and seed: compared through the law"
        )
    if not rows.chains and runs.label is not None:
        found.append("all runs are of one chain, and share noise that cannot be told: the interval is too narrow")
    if width > VAGUE:
        found.append(f"the interval's ends are {width:.3g} times apart: these runs tell next to nothing")
    if np.ptp(runs.log_x) < 0.05:
        found.append("all runs have one shape: compute here means training it longer")
    reach = np.exp(runs.log_flops[~runs.idea])
    wanted = np.exp(runs.log_flops[runs.idea] + model.log_multiplier(solved.point)[runs.idea])
    if not 0.8 * reach.min() < np.median(wanted) < 1.25 * reach.max():
        found.append("the baseline would need compute beyond its own ladder: its law is extrapolated")
    if len(points) >= 2 * FEWEST:
        miss = np.abs(solved.residual[: len(points)])
        far = np.flatnonzero(miss > OUTLYING * MAD * np.median(miss))
        found += [f"the pair at {points[i, 0]:.3g} FLOP lies far off the others: look at its runs" for i in far[:3]]
    return found


def _multiplier(log_m: Array) -> Array:
    """From its log, no farther from 1 than what is looked for."""
    reach = np.log(FURTHEST)
    return np.asarray(np.exp(np.clip(log_m, -reach, reach)))


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def _at(solved: Robust, away: float, trending: bool) -> Array:
    """The combination of the point that is log multiplier `away`, in log C, from the centre."""
    return _unit(solved, 0) + away * _unit(solved, 1) * trending


def _unit(solved: Robust, place: int) -> npt.NDArray[np.float64]:
    return np.eye(len(solved.point))[place]
