"""Laws for learning rate, batch and their like against scale and tokens, refitted from sweeps, with regret bands.

One bowl (`nachim.law.bowl`) is fitted to every run of every cell at once, where picking each cell's winner would throw
away what the other runs say and keep the winner's luck. The powers of x and D have the published laws as their prior,
as wide as those laws are apart: what the runs do not determine stays as uncertain as the literature is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from nachim.law.bowl import Bowl, Prior, fit_bowl, near_weight, refit_bowl
from nachim.law.forms import Array
from nachim.law.interval import quantiles
from nachim.law.sweep import SPELT, Sweep
from nachim.law.transfer import Plane, Planes, optimum, published_exponents
from nachim.spec.error import UserError

DRAWS = 100
CLOSE, PRECISE = 0.1, 1e-2
"""Where a refit of the bootstrap, and one that is read by itself, may stop, in units of -2 log posterior."""
LEVEL_SD = 2.0
LOG_CURVATURE = (np.log(0.01), 2.0)
"""A rate e times too high or low costs about 0.5 %: mean and standard deviation of the log of the bowl's a."""
SKEW_SD, MIXING_SD, SPREAD_SD, OPEN_SD = 1.0, 1.0, 0.2, 0.5
"""Of kappa, of R's off-diagonal, of (g, h), and of powers that no published law gives."""
LEARNT = 0.5
"""A power counts as determined by the runs where they narrow its prior to this share."""
WIDEST = 12.0
"""Bands are looked for within this many units of log on either side."""
DEAREST = 5.0
"""Log of loss over its least at which regret is cut off: no run loses more."""
SCALES = 3
"""Fewest scales from which intervals are calibrated, each left out in turn."""
ROLL_DRAWS = 30
LEVEL, Z90 = 0.9, 1.6449


@dataclass(frozen=True)
class Law:
    """The optimal `name` = coefficient·x^model·D^data, with 90 % intervals of its three numbers (keys `coefficient`,
    `model`, `data`); `determined` says for each power whether the runs, not the prior, give it; `edges` of
    `cells` sweeps have their best value at an end; `trusted` is false where most do."""

    name: str
    plane: Plane
    interval90: Mapping[str, tuple[float, float]]
    determined: Mapping[str, bool]
    edges: int
    cells: int

    @property
    def trusted(self) -> bool:
        """Whether most sweeps have their best value inside."""
        return 2 * self.edges <= self.cells


@dataclass(frozen=True)
class Band:
    """At one (x, D): the `best` value of `name`, its 90 % interval, and the range [`low`, `high`] within which it
    costs at most the percent asked, the others at their best. An end is infinite where the bowl never costs so much."""

    name: str
    best: float
    interval90: tuple[float, float]
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Hyper:
    """Laws fitted to a sweep: `bowl` in the sweep's normalised logs, `noise` the standard deviation of log loss near
    the optimum, `draws` (m, size) refits to reweighted cells and runs under shaken priors, their centres `stretch` (k,)
    times as far from the fit's as they came out; None where too few scales were swept to know it."""

    sweep: Sweep
    bowl: Bowl
    noise: float
    prior: Prior
    draws: Array
    stretch: Array | None = None

    @property
    def laws(self) -> dict[str, Law]:
        """The law of everything that was swept, by name."""
        k = len(self.sweep.axes)
        rows = np.concatenate([self.bowl.point[None], self.draws])[:, : 3 * k].reshape(-1, k, 3)
        narrowed = rows[1:].std(axis=0) < LEARNT * self.prior.sd[: 3 * k].reshape(k, 3)
        found = {}
        for place, name in enumerate(self.sweep.axes):
            log_c = self._original(rows[:, place], place)
            values = {"coefficient": np.exp(log_c), "model": rows[:, place, 1], "data": rows[:, place, 2]}
            swept = self.sweep.swept(name)
            found[name] = Law(
                name=name,
                plane=Plane(**{key: float(column[0]) for key, column in values.items()}),
                interval90={key: quantiles(column[1:]) for key, column in values.items()},
                determined={"model": bool(narrowed[place, 1]), "data": bool(narrowed[place, 2])},
                edges=int((self.sweep.at_edge(name) & swept).sum()),
                cells=int(swept.sum()),
            )
        return found

    def _original(self, rows: Array, place: int) -> Array:
        """Log coefficients in original units, (m,), from rows (m, 3) of normalised centres."""
        tuned, scales = self.sweep.middle
        return np.asarray(rows[:, 0] + tuned[place] - rows[:, 1:] @ scales)

    @property
    def planes(self) -> Planes:
        """The laws alone, to be used where runs are made."""
        planes = {name: law.plane for name, law in self.laws.items()}
        return Planes(self.sweep.scale, f"refitted from {len(self.sweep.loss)} runs", planes)

    @property
    def timescale(self) -> Law | None:
        """tau = B/(lr·lambda·D) at the optimum (arXiv 2505.13738 section 3), where weight decay was swept or held."""
        axes, held = self.sweep.axes, self.sweep.held.get("weight_decay")
        if "batch_tokens" not in axes or ("weight_decay" not in axes and (held is None or np.ptp(np.log(held)) > 1e-6)):
            return None
        signs = {"lr": -1.0, "batch_tokens": 1.0, "weight_decay": -1.0}
        k = len(axes)
        rows = np.concatenate([self.bowl.point[None], self.draws])[:, : 3 * k].reshape(-1, k, 3)
        powers = sum(signs.get(name, 0.0) * rows[:, place, 1:] for place, name in enumerate(axes)) - np.array([0, 1])
        log_c = sum(signs.get(name, 0.0) * self._original(rows[:, place], place) for place, name in enumerate(axes))
        log_c = log_c - (0.0 if held is None else np.log(held[0]))
        values = {"coefficient": np.exp(log_c), "model": powers[:, 0], "data": powers[:, 1]}
        laws = [law for law in self.laws.values() if law.name in signs]
        return Law(
            name="tau",
            plane=Plane(**{key: float(column[0]) for key, column in values.items()}),
            interval90={key: quantiles(column[1:]) for key, column in values.items()},
            determined={key: all(law.determined[key] for law in laws) for key in ("model", "data")},
            edges=max(law.edges for law in laws),
            cells=max(law.cells for law in laws),
        )

    def log_best(self, x: Array | float, tokens: Array | float, point: Array | None = None) -> Array:
        """Logs of the best values at `x` and `tokens`, (n, k), in the order of the sweep's axes."""
        bowl = self.bowl if point is None else Bowl(len(self.sweep.axes), point)
        return np.asarray(self.sweep.design(x, tokens) @ bowl.centre.T + self.sweep.middle[0])

    def regret(self, x: float, tokens: float, log_values: Array) -> Array:
        """What runs of `log_values` (n, k) cost at (x, D), in percent of the least loss, by the bowl."""
        design = np.repeat(self.sweep.design(x, tokens), len(log_values), axis=0)
        excess = self.bowl.excess(log_values - self.sweep.middle[0], design)
        return np.asarray(100 * np.expm1(np.minimum(excess, DEAREST)))

    def bands(self, x: float, tokens: float, percent: float = 0.25) -> dict[str, Band]:
        """The range of each tuned value that costs at most `percent`, and how certain its optimum is."""
        best = self.log_best(x, tokens)[0]
        refits = np.array([self.log_best(x, tokens, point)[0] for point in self.draws])
        found = {}
        for place, name in enumerate(self.sweep.axes):
            low, high = (self._reach(x, tokens, best, place, side, percent) for side in (-1, 1))
            ends = quantiles(np.exp(refits[:, place]))
            found[name] = Band(name, float(np.exp(best[place])), ends, float(np.exp(low)), float(np.exp(high)))
        return found

    def _reach(self, x: float, tokens: float, best: Array, place: int, side: int, percent: float) -> float:
        def over(step: float) -> float:
            moved = best.copy()
            moved[place] += side * step
            return float(self.regret(x, tokens, moved[None])[0]) - percent

        if over(WIDEST) < 0:
            return side * np.inf
        return float(best[place] + side * brentq(over, 0.0, WIDEST))

    def cost_of_following(self, x: float, tokens: float) -> tuple[float, float]:
        """Mean and 95th percentile, in percent, of what the law's own advice costs if a refit has the optimum."""
        best = self.log_best(x, tokens)[0]
        refits = np.array([self.log_best(x, tokens, point)[0] for point in self.draws])
        costs = self.regret(x, tokens, best + (best - refits))
        return float(costs.mean()), float(np.quantile(costs, 0.95))


def hyper(sweep: Sweep, draws: int = DRAWS, seed: int = 0) -> Hyper:
    """Fit the laws of a sweep; without `draws` they have no intervals.

    Raises UserError when learning rates are swept at one (x, D) alone.
    """
    _check_cells(sweep)
    prior = prior_of(sweep)
    bowl, noise = fit_bowl(sweep.runs(), prior)
    refits = _refits(sweep, prior, bowl, noise, draws, np.random.default_rng(seed))
    fitted = Hyper(sweep, bowl, noise, prior, refits)
    stretch = _stretch(fitted, np.random.default_rng(seed)) if draws else None
    if stretch is None:
        return fitted
    spread, size = fitted.draws.copy(), 3 * len(sweep.axes)
    spread[:, :size] += np.repeat(stretch - 1, 3) * (spread[:, :size] - fitted.bowl.point[:size])
    return replace(fitted, draws=spread, stretch=stretch)


def _stretch(fitted: Hyper, rng: np.random.Generator) -> Array | None:
    """How many times too narrow the refits spread, (k,), at least 1: each scale is left out in turn, and the optima
    that its own runs ask for are held against the law of the others (conformal, as in arXiv 2107.07511 section 1)."""
    sweep = fitted.sweep
    scales = np.unique(sweep.cells[sweep.swept("lr"), 0])
    if len(scales) < SCALES:
        return None
    found = []
    for scale in scales:
        ours = sweep.cells[:, 0] != scale
        others = fit_without(fitted, ours)
        refits = _refits(others.sweep, others.prior, others.bowl, others.noise, ROLL_DRAWS, rng)
        for number in np.flatnonzero(~ours & sweep.swept("lr")):
            at = sweep.cells[number]
            best = np.array([others.log_best(*at, point)[0] for point in refits])
            step, variance = _own_step(others, sweep, number)
            found.append(np.abs(step) / np.sqrt(best.var(axis=0) + variance))
    scores = np.array(found) / Z90
    rank = min(1.0, np.ceil((len(scores) + 1) * LEVEL) / len(scores))
    return np.asarray(np.maximum(1.0, np.quantile(scores, rank, axis=0, method="inverted_cdf")))


def _own_step(law: Hyper, sweep: Sweep, number: int) -> tuple[Array, Array]:
    """How far the optimum that the runs of one cell of `sweep` ask for lies from the law's, (k,), and its variance: one
    Newton step of the bowl's centre, under a prior as weak as a level's."""
    k, here = len(sweep.axes), sweep.cell == number
    z = sweep.z[here] - law.sweep.middle[0]
    q, slopes = law.bowl.slopes(z, law.sweep.design(sweep.x[here], sweep.tokens[here]))
    slopes = slopes[:, : 3 * k].reshape(-1, k, 3)[:, :, 0]
    weight = near_weight(sweep.excess[here])
    share = weight / weight.sum()
    residual = np.log(sweep.loss[here]) - q
    residual, slopes = residual - share @ residual, slopes - share @ slopes
    matrix = slopes.T @ (weight[:, None] * slopes) / law.noise**2 + np.eye(k) / LEVEL_SD**2
    step = np.linalg.solve(matrix, slopes.T @ (weight * residual) / law.noise**2)
    return step, np.linalg.inv(matrix).diagonal()


def _refits(
    sweep: Sweep, prior: Prior, bowl: Bowl, noise: float, draws: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """A Bayesian bootstrap (Rubin 1981) over cells and over runs, each under a prior drawn around itself: what the runs
    leave open spreads as far as the prior does."""
    runs = sweep.runs()
    found = np.empty((draws, len(bowl.point)))
    for draw in range(draws):
        weight = rng.exponential(size=len(sweep.cells))[sweep.cell] * rng.exponential(size=len(sweep.loss))
        shaken = Prior(prior.mean + prior.sd * rng.standard_normal(len(prior.sd)), prior.sd)
        again = type(runs)(runs.z, runs.design, runs.y, runs.cell, runs.weight * weight)
        found[draw] = refit_bowl(again, shaken, bowl, noise, CLOSE).point
    return found


def fit_without(fitted: Hyper, kept: npt.NDArray[np.bool_]) -> Hyper:
    """The same fit on the cells where `kept` (G,) is true, without draws."""
    sweep = fitted.sweep.only(kept)
    prior = prior_of(sweep)
    bowl = refit_bowl(sweep.runs(), prior, fitted.bowl, fitted.noise, PRECISE)
    return Hyper(sweep, bowl, fitted.noise, prior, np.empty((0, len(bowl.point))))


def prior_of(sweep: Sweep) -> Prior:
    """Powers as the published laws have them, as wide as those are apart; levels amid the best runs; the rest weak."""
    k = len(sweep.axes)
    centre, centre_sd = np.zeros((k, 3)), np.full((k, 3), OPEN_SD)
    winners = [sweep.z[sweep.cell == number][np.argmin(sweep.loss[sweep.cell == number])] for number in _swept(sweep)]
    centre[:, 0], centre_sd[:, 0] = np.mean(winners, axis=0) - sweep.middle[0], LEVEL_SD
    for place, name in enumerate(sweep.axes):
        if name in ("lr", "batch_tokens"):
            centre[place, 1:], centre_sd[place, 1:] = published_exponents(name)
    mixing = k * (k - 1)
    curvature, curvature_sd = LOG_CURVATURE
    return Prior(
        mean=np.concatenate([centre.ravel(), np.full(k, curvature), np.zeros(k + mixing + 2)]),
        sd=np.concatenate(
            [
                centre_sd.ravel(),
                np.full(k, curvature_sd),
                np.full(k, SKEW_SD),
                np.full(mixing, MIXING_SD),
                np.full(2, SPREAD_SD),
            ]
        ),
    )


def _swept(sweep: Sweep) -> npt.NDArray[np.intp]:
    return np.flatnonzero(sweep.swept("lr"))


def _check_cells(sweep: Sweep) -> None:
    cells = _swept(sweep)
    if len(cells) > 1:
        return
    x, tokens = sweep.cells[cells[0]]
    here = sweep.cell == cells[0]
    parts = []
    for place, name in enumerate(sweep.axes):
        if sweep.swept(name)[cells[0]]:
            best = optimum(np.exp(sweep.z[here, place]), sweep.loss[here])
            edge = " (at the edge of its sweep)" if sweep.at_edge(name)[cells[0]] else ""
            parts.append(f"{SPELT[name]} {best:.4g}{edge}")
    where = "every run has" if len(sweep.cells) == 1 else "learning rates are swept only at"
    raise UserError(
        f"{where} {sweep.scale} {x:.4g} and tokens {tokens:.4g}: that fixes the optimum there ({', '.join(parts)}), "
        "not how it moves; sweep at two or more (scale, tokens)"
    )
