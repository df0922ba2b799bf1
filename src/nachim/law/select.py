"""Choosing a law by growing-budget rollouts: fit cheap runs, forecast dearer ones, count the misses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.law.fit import shortfall, solve_many
from nachim.law.forms import Array, Law, Sample
from nachim.law.interval import band, bootstrap, mixture, noise_sd
from nachim.spec.error import UserError

CUTS = 5
DRAWS = 30
STARTS = 4
SPARE = 4
LEAST_SHARE = 0.4
"""A rollout fits at least this share of the runs: fits to far fewer do not behave like the fit to all."""
SHARPNESS = 2.0
"""A law's weight falls with this power of its rollout error: twice the error, a quarter of the weight."""

NOISES, BANDS, MISFIT = 4.0, 1.5, 2.0
"""How many noises, band reaches and cheap-run residuals a change of regime must exceed (see `regime`)."""
LEAST_NOISE = 1e-3
"""Below 0.1 % of loss a difference is no change of regime, however exact the runs are."""


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Forecasts of dearer runs from cheaper ones, for m cuts and n runs sorted as the observations are.

    `cuts` (m,) is the largest FLOPs that was fitted, `ahead` (m, n) marks the dearer runs; by law, `forecast`
    (m, n) is log loss (normalised, as `actual` (n,), which was measured), `spread` (m, draws, n) its bootstrap
    refits, and `noise` (m,) the fits' run noise. `budget` (n,) is the number of each run's budget.
    """

    cuts: Array
    ahead: npt.NDArray[np.bool_]
    flops: Array
    actual: Array
    budget: npt.NDArray[np.intp]
    forecast: Mapping[str, Array]
    spread: Mapping[str, Array]
    noise: Mapping[str, Array]

    @property
    def far(self) -> Array:
        """How far each forecast extrapolates, log(C / C at the cut), (m, n); 0 for runs that were fitted."""
        return np.where(self.ahead, np.log(self.flops / self.cuts[:, None]), 0.0)

    def score(self, law: str) -> float:
        """Mean absolute log error of a law, each forecast weighted by how far (in log C) it extrapolates."""
        return float((self.far * np.abs(self.actual - self.forecast[law])).sum() / self.far.sum())

    def bands(
        self, law: str, shares: Mapping[str, float], noise: float | None, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """Reach of the 90 % band below and above the forecast of `law`, each (m, n)."""
        below, above = np.empty(self.ahead.shape), np.empty(self.ahead.shape)
        for cut in range(len(self.cuts)):
            sd = max(self.noise[law][cut], noise or 0.0)
            parts = [self.spread[name][cut] for name in shares]
            draws = mixture(parts, list(shares.values()), sd, rng)
            below[cut], above[cut] = band(draws, self.forecast[law][cut], 0.9, sd)
        return below, above


@dataclass(frozen=True)
class Regime:
    """A change that forecasts cannot cross: it begins at `flops`; the loss then lies `percent` off the
    forecast of the cheaper runs (negative: lower)."""

    flops: float
    percent: float
    runs: int

    def __str__(self) -> str:
        way = "falls below" if self.percent < 0 else "rises above"
        return (
            f"from {self.flops:.2g} FLOPs on, the loss of all {self.runs} runs {way} what the cheaper runs "
            f"forecast, by {abs(self.percent):.0f} %: one law does not describe both sides"
        )


def budgets(flops: Array) -> npt.NDArray[np.intp]:
    """Number of each run's budget, (n,), from the cheapest; a budget spans 10 % of FLOPs."""
    label = np.empty(len(flops), dtype=np.intp)
    number, floor = -1, 0.0
    for run in np.argsort(flops, kind="stable"):
        if number < 0 or flops[run] > 1.1 * floor:
            number, floor = number + 1, flops[run]
        label[run] = number
    return label


def choose_cuts(laws: Mapping[str, Law], sample: Sample, flops: Array) -> Array:
    """Up to CUTS compute values, even in log C, below which lie LEAST_SHARE of the runs and enough to
    determine every law with SPARE runs to spare, and above which two or more runs lie."""
    label = budgets(flops)
    tops = np.array([flops[label == number].max() for number in range(label.max() + 1)])
    fit = []
    for top in tops:
        cheap = (flops <= top) & (sample.weight > 0)
        enough = max(LEAST_SHARE * len(flops), *(law.size + SPARE for law in laws.values()))
        if (
            cheap.sum() >= enough
            and (flops > top).sum() >= 2
            and not any(shortfall(sample, law, cheap) for law in laws.values())
        ):
            fit.append(top)
    if not fit:
        return np.empty(0)
    wanted = np.geomspace(fit[0], fit[-1], CUTS)
    return np.unique([min(fit, key=lambda top: abs(np.log(top / want))) for want in wanted])


def roll(laws: Mapping[str, Law], sample: Sample, flops: Array, rng: np.random.Generator) -> Rollouts:
    """Fit every law on the runs up to each cut and forecast the dearer ones; no cut fits leaves m = 0."""
    cuts = choose_cuts(laws, sample, flops)
    ahead = (flops > cuts[:, None]) & (sample.weight > 0)
    weights = np.where(flops <= cuts[:, None], sample.weight, 0.0)
    none = np.empty((0, len(flops)))
    forecast = dict.fromkeys(laws, none)
    spread = dict.fromkeys(laws, none)
    noise = dict.fromkeys(laws, np.empty(0))
    for name, law in laws.items() if len(cuts) else ():
        points, _, _ = solve_many(law, sample, weights, STARTS)
        forecast[name] = law.value(points, *sample.inputs)
        refits = bootstrap(law, sample, points, weights, DRAWS, rng)
        spread[name] = law.value(refits, *sample.inputs)
        residual = sample.log_loss - forecast[name]
        noise[name] = np.array([noise_sd(r[w > 0], law.size) for r, w in zip(residual, weights, strict=True)])
    return Rollouts(cuts, ahead, flops, sample.log_loss, budgets(flops), forecast, spread, noise)


def law_weights(rollouts: Rollouts, laws: Mapping[str, Law]) -> dict[str, float]:
    """Weights that sum to 1, by score^-2; all on the law of fewest coefficients where there is no cut."""
    if not len(rollouts.cuts):
        simplest = min(laws, key=lambda name: laws[name].size)
        return {name: float(name == simplest) for name in laws}
    merit = {name: (rollouts.score(name) + 1e-9) ** -SHARPNESS for name in laws}
    return {name: value / sum(merit.values()) for name, value in merit.items()}


def favoured(weights: Mapping[str, float], law: str) -> dict[str, float]:
    """The weights when `law` was asked for by name: it keeps at least half, the others share the rest."""
    share = max(weights[law], 0.5)
    shrink = (1 - share) / max(1 - weights[law], 1e-12)
    return {name: share if name == law else shrink * weight for name, weight in weights.items()}


def rollout_scores(rollouts: Rollouts, law: str, reach: tuple[Array, Array]) -> tuple[Array, Array]:
    """Of every forecast made, |error| over the reach of the band on its side (see `Rollouts.bands`), and
    how far it extrapolates, in log C."""
    error = rollouts.actual - rollouts.forecast[law]
    there = np.where(error > 0, reach[1], reach[0])[rollouts.ahead]
    return np.abs(error[rollouts.ahead]) / np.maximum(there, 1e-12), rollouts.far[rollouts.ahead]


def regime(rollouts: Rollouts, law: str, reach: tuple[Array, Array], together: float, noise: float) -> Regime | None:
    """The change of regime that the rollouts show, if any.

    A cut shows one when, from some budget on, the mean of every dearer budget is off the forecast in the same
    direction and outside its band, `reach` (see `Rollouts.bands`); when the runs are off by far more than run
    noise and the band (medians of NOISES and BANDS times); and when fitting both sides at once leaves
    residuals, of standard deviation `together`, MISFIT times those of the cheap runs alone: a forecast from
    few runs may be poor without any change of regime. `noise` and LEAST_NOISE are floors of the run noise.
    Of the cuts that show one, the cut whose forecast is missed by the most bands tells where it begins.
    """
    found = []
    for cut in range(len(rollouts.cuts)):
        sd = max(float(rollouts.noise[law][cut]), noise, LEAST_NOISE)
        if together > MISFIT * sd:
            error = rollouts.actual - rollouts.forecast[law][cut]
            band_there = np.where(error > 0, reach[1][cut], reach[0][cut])
            found.append(_displaced(rollouts, rollouts.ahead[cut], error, band_there, sd))
    shown = [each for each in found if each is not None]
    return max(shown, key=lambda each: each[0])[1] if shown else None


def _displaced(
    rollouts: Rollouts, ahead: npt.NDArray[np.bool_], error: Array, reach: Array, sd: float
) -> tuple[float, Regime] | None:
    sign, begin = 0.0, None
    for number in sorted(set(rollouts.budget[ahead].tolist()), reverse=True):
        here = ahead & (rollouts.budget == number)
        mean = error[here].mean()
        if abs(mean) < reach[here].mean() or (sign and np.sign(mean) != sign):
            break
        sign, begin = float(np.sign(mean)), number
    if begin is None:
        return None
    past = ahead & (rollouts.budget >= begin)
    size = np.abs(error[past])
    evidence = float(np.median(size / np.maximum(reach[past], 1e-12)))
    if past.sum() < 2 or np.median(size) < NOISES * sd or evidence < BANDS:
        return None
    percent = float(100 * np.expm1(np.median(error[past])))
    return evidence, Regime(float(rollouts.flops[past].min()), percent, int(past.sum()))


def check_regime(change: Regime | None, flops: float) -> None:
    """Refuse a forecast at `flops` that lies beyond a change of regime: raises UserError with the reason."""
    if change is not None and flops >= change.flops:
        raise UserError(
            f"no forecast at {flops:.2g} FLOPs: {change}; fit runs from one side only, or find what changed"
        )
