"""The whole reading of a table of runs: rollouts, the choice of a law, its fit, and honest intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nachim.law.fit import Fit, fit, sample_of, shortfall
from nachim.law.forms import FLOPS_PER_UNIT, Array, Law, Sample, Scale
from nachim.law.interval import bootstrap, conformal_factor, half_width, noise_sd, quantiles
from nachim.law.laws import LARGER, LAWS, law_named
from nachim.law.observe import Observations
from nachim.law.regime import Regime, regime
from nachim.law.select import (
    FOCI,
    SPARE,
    Drift,
    Rollouts,
    Shares,
    Views,
    alike,
    drift,
    favoured,
    law_weights,
    look,
    only,
    refocus,
    roll,
    rollout_scores,
    view_shares,
    weights_of,
)
from nachim.spec.error import UserError

DRAWS = 200
WORK = 250_000
"""Upper bound of runs x draws in a bootstrap: very large tables need fewer draws, and get fewer."""
RUNS_EACH = 6
"""A larger law takes part where the table holds so many runs for each of its coefficients."""
TRACE = 1e-9
"""Shares that sum to less tell their laws apart no more."""
TIE = 0.75
"""A law with less than this share is not told from the next."""
CLEAR = 4.0
"""How many run noises two forecasts must lie apart for a few runs to tell which is right."""
FARTHER = 10.0
"""How far beyond the dearest run, in compute, laws that tie are compared."""


@dataclass(frozen=True)
class Allocation:
    """Compute-optimal scale `x` and `tokens` at `flops`, each with its 90 % interval."""

    flops: float
    x: float
    tokens: float
    x_interval: tuple[float, float]
    tokens_interval: tuple[float, float]


@dataclass(frozen=True)
class Held:
    """How `n` runs that were not fitted were forecast, in percent: the mean absolute error, how many lie inside their
    90 % intervals, and the median width of these."""

    n: int
    mape: float
    coverage90: float
    median_width: float


@dataclass(frozen=True, eq=False)
class Study:
    """What a table of runs says.

    `fit` is the chosen law's fit to all runs alike, whose coefficients are reported; `fits` holds every law of optima
    that the runs determine, `refits` its bootstrap refits and `weights` its share among them. `errors` is the rollout
    error of every law in percent (empty where no rollout was possible).

    Forecasts are of `views`: each law, the larger ones too, under every focus (see `nachim.law.select`). Their mean by
    the shares `lead`, and the `drift` that the rollouts showed, is the forecast; all of them by `shares` make its
    interval; larger laws have no share in forecasts farther beyond the runs than the rollouts went. `noise` is the run
    noise in log units; `factor` the conformal stretch; `coverage` how many of the rollouts' forecasts, in percent, the
    intervals so stretched contain (None without rollouts). `top` is the dearest compute fitted. `undecided` says why
    the runs cannot tell laws apart, where they cannot.
    """

    fit: Fit
    fits: Mapping[str, Fit]
    weights: Mapping[str, float]
    errors: Mapping[str, float]
    noise: float
    factor: float
    coverage: float | None
    regime: Regime | None
    refits: Mapping[str, Array]
    seed: int
    views: Mapping[str, Views]
    lead: Shares
    shares: Shares
    drift: Drift
    rollouts: Rollouts
    top: float
    undecided: str | None = None

    @property
    def coefficients(self) -> dict[str, float]:
        """Coefficients of the chosen law, in original units."""
        return self.fit.coefficients

    @property
    def exponents(self) -> dict[str, float]:
        """Growth of the optimal `model` scale and `data` with compute."""
        return self.fit.exponents

    @property
    def interval90(self) -> dict[str, tuple[float, float]]:
        """90 % bootstrap interval of each coefficient of the chosen law."""
        theta = self._theta(self.fit)
        return {name: quantiles(values) for name, values in theta.items()}

    @property
    def exponents_interval90(self) -> dict[str, tuple[float, float]]:
        """90 % interval of the `model` and `data` exponents over all laws, by weight; empty where `exponents` is."""
        if not self.exponents:
            return {}
        pairs = [one.law.exponents(self._theta(one), one.flops, one.scale) for one in self.fits.values()]
        model = self._pool([pair[0] for pair in pairs])
        model = model[np.isfinite(model)]
        return {"model": quantiles(model), "data": quantiles(1 - model)}

    def predict(
        self, x: Array | float, tokens: Array | float, level: float = 0.9, **others: Array | float
    ) -> tuple[Array, Array, Array]:
        """Loss at scale `x` and `tokens`, with the `level` prediction interval of one run: point, low, high.

        `others` are what a law asked for by name reads beside them. The point is the mean of log loss over the views by
        their shares: where the rollouts cannot tell two laws apart, neither alone is the forecast.

        Raises UserError when a number is not positive, or one that a law reads is missing.
        """
        if not (np.all(np.asarray(x) > 0) and np.all(np.asarray(tokens) > 0)):
            raise UserError("a forecast needs a positive model scale and a positive number of tokens")
        product = FLOPS_PER_UNIT[self.fit.scale] * np.asarray(x, float) * np.asarray(tokens, float)
        given = {"flops": product, **others, "x": x, "tokens": tokens}
        columns = dict(
            zip(given, np.broadcast_arrays(*(np.asarray(each, float) for each in given.values())), strict=True)
        )
        shape = columns["x"].shape
        logs = {name: np.log(column.ravel()) for name, column in columns.items()}
        seen = {name: self._seen(name, logs) for name in self.views}
        far = logs["flops"] - np.log(self.top)
        shift = self.drift.at(far)
        lead, shares = self._within(self.lead, far), self._within(self.shares, far)
        centre = sum((share * seen[name][0]).sum(axis=0) for name, share in lead.items()) + shift
        means = np.concatenate([seen[name][0] + shift for name in shares])
        spreads = np.concatenate([seen[name][1] for name in shares])
        reach = half_width(level, centre, means, spreads, np.concatenate(list(shares.values())))
        reach *= self.factor * self._untried(far)
        unit = self.fit.sample.units.loss
        point, low, high = (unit * np.exp(end).reshape(shape) for end in (centre, centre - reach, centre + reach))
        return point, low, high

    def _untried(self, far: Array) -> Array:
        """The stretch, at least 1, of the band of forecasts that reach `far` (n,) in log C: beyond the farthest rollout
        nothing was calibrated, and what a law cannot follow wanders off with the square root of the reach.

        None where the law has a prior, which keeps it from wandering: there bands hold without (`ideas/prior.md`)."""
        tried = float(self.rollouts.far.max(initial=0.0))
        free = self.fit.law.prior is None and tried > 0
        return np.sqrt(np.maximum(far / tried, 1.0)) if free else np.ones_like(far)

    def _within(self, shares: Shares, far: Array) -> dict[str, Array]:
        """The shares, each (foci, n), of forecasts that reach `far` (n,): a larger law's end where no rollout went."""
        tried = far <= self.rollouts.far.max(initial=0.0)
        each = {name: share[:, None] * (tried | (name in self.fits)) for name, share in shares.items()}
        total = sum(share.sum(axis=0) for share in each.values())
        even = {name: (name in self.fits) / len(FOCI) / len(self.fits) for name in shares}
        return {name: np.where(total > TRACE, s / np.maximum(total, TRACE), even[name]) for name, s in each.items()}

    def _seen(self, name: str, logs: Mapping[str, Array]) -> tuple[Array, Array]:
        """Log loss and standard deviation of one run, (foci, n), of the views of a law."""
        views = self.views[name]
        law, units = views.law, views.units
        if missing := [each for each in law.inputs if each not in logs]:
            raise UserError(f"a forecast by the {name} law also needs {' and '.join(missing)}")
        inputs = tuple(logs[each] - np.log(units.of(each)) for each in law.inputs)
        mean, spread = views.at(inputs)
        if not law.allocates or law.inputs != ("x", "tokens"):
            return mean, views.spread(spread, np.zeros(mean.shape[1]))
        theta = {key: value[:, None] for key, value in law.coefficients(views.points, units).items()}
        best = law.allocation(theta, np.exp(logs["flops"]), self.fit.scale)
        least = np.log(law.predict(theta, *best) / units.loss)
        return mean, views.spread(spread, np.maximum(np.nan_to_num(mean - least), 0.0))

    def held_out(self, unseen: Observations) -> Held:
        """How the runs `unseen` are forecast. Raises UserError when they lack a column that the law reads."""
        scale, inputs = self.fit.scale, self.fit.law.inputs
        others = {name: unseen.column(name, scale) for name in inputs if name not in ("x", "tokens")}
        point, low, high = self.predict(unseen.x(scale), unseen.tokens, **others)
        return Held(
            n=len(unseen),
            mape=float(100 * np.mean(np.abs(point / unseen.loss - 1))),
            coverage90=float(100 * np.mean((low <= unseen.loss) & (unseen.loss <= high))),
            median_width=float(100 * np.median((high - low) / point)),
        )

    def allocation(self, flops: float) -> Allocation:
        """Optimal scale and tokens at compute `flops`, with 90 % intervals over all laws, by weight.

        Raises UserError when `flops` is not a positive number.
        """
        if not (np.isfinite(flops) and flops > 0):
            raise UserError(f"flops must be a positive number, not {flops}")
        x, tokens = self.fit.allocation(flops)
        pairs = [f.law.allocation(self._theta(f), flops, f.scale) for f in self.fits.values()]
        return Allocation(
            flops=flops,
            x=float(x),
            tokens=float(tokens),
            x_interval=quantiles(self._pool([pair[0] for pair in pairs])),
            tokens_interval=quantiles(self._pool([pair[1] for pair in pairs])),
        )

    def _theta(self, one: Fit) -> dict[str, Array]:
        return one.law.coefficients(self.refits[one.law.name], one.sample.units)

    def _pool(self, parts: list[Array]) -> Array:
        kept = [part[: round(w * len(part))] for part, w in zip(parts, self.weights.values(), strict=True)]
        return np.concatenate(kept)


def study(
    obs: Observations,
    law: str = "auto",
    scale: Scale | None = None,
    seed: int = 0,
    noise: float | None = None,
    draws: int | None = None,
) -> Study:
    """Read a table of runs: choose a law ("auto": least rollout error) or take the named one, and fit it.

    `scale` defaults to `flops_per_token` where that column is present, else `params`. `noise` is the standard
    deviation of log loss between equal runs with other seeds, where it was measured: the residuals' own
    is used when larger, and the laws have a prior (`Law.informed`). `draws` is how many refits the intervals come from,
    by default 200 (fewer for very large tables). Raises UserError when the runs determine no law, or not the one named.
    """
    scale = scale or obs.scales[0]
    laws, samples = _determined(obs, law, scale, noise)
    rollouts = roll(laws, samples, obs.flops, noise or 0.0)
    if not len(rollouts.cuts):
        laws = {each: one for each, one in laws.items() if each not in LARGER or each == law}
    shares = view_shares(rollouts, laws)
    lead = shares if law == "auto" else only(shares, law)
    if not len(rollouts.cuts):
        shares = alike(laws)
    shares = shares if law == "auto" else favoured(shares, law)
    every = {each: fit(obs, one, scale) for each, one in laws.items()}
    fits = {each: one for each, one in every.items() if each in LAWS or each == law}
    weights = law_weights(shares, fits)
    name = law if law != "auto" else max(fits, key=lambda each: weights[each])
    rng = np.random.default_rng(seed)
    views = {each: _views(one, obs.flops, noise or 0.0) for each, one in every.items()}
    count = draws or max(40, min(DRAWS, WORK // len(obs)))
    refits = {
        each: bootstrap(one.law, one.sample, one.point[None], one.sample.weight[None], count, rng)[0]
        for each, one in fits.items()
    }
    rms = _misfit(fits[name])
    scores, trust = rollout_scores(rollouts, lead, shares)
    factor = conformal_factor(scores, trust)
    run_noise = float(sum(share @ views[each].noise for each, share in lead.items()))
    return Study(
        fit=fits[name],
        fits=fits,
        weights=weights,
        errors={each: 100 * rollouts.error(each, shares) for each in laws} if len(rollouts.cuts) else {},
        noise=run_noise,
        factor=factor,
        coverage=float(100 * trust[scores <= factor].sum() / trust.sum()) if len(scores) else None,
        regime=regime(rollouts, name, weights, rms, noise or 0.0),
        refits=refits,
        seed=seed,
        views=views,
        lead=lead,
        shares=shares,
        drift=drift(rollouts, rollouts.mean(lead)),
        rollouts=rollouts,
        top=float((FLOPS_PER_UNIT[scale] * obs.x(scale) * obs.tokens)[obs.weight > 0].max()),
        undecided=_undecided(fits, weights, rollouts, run_noise) if law == "auto" else None,
    )


def _determined(
    obs: Observations, law: str, scale: Scale, noise: float | None
) -> tuple[dict[str, Law], dict[str, Sample]]:
    """The laws that the runs determine, the one named among them, and the runs as each sees them; with what is known of
    the laws beforehand where the `noise` of a run was measured."""
    asked = {} if law == "auto" else {law: law_named(law)}
    many = (obs.weight > 0).sum()
    tried = LAWS | {name: one for name, one in LARGER.items() if many >= RUNS_EACH * one.size} | asked
    samples = {name: sample_of(obs, scale, one) for name, one in tried.items()}
    reasons = {name: shortfall(samples[name], one) for name, one in tried.items()}
    if law != "auto" and (reason := reasons[law]):
        raise UserError(reason)
    laws = {name: one for name, one in tried.items() if not reasons[name]}
    if not laws:
        raise UserError(str(next(iter(reasons.values()))))
    if noise:
        laws = {name: one.informed(max(noise, _misfit(fit(obs, one, scale)))) for name, one in laws.items()}
    return laws, {name: samples[name] for name in laws}


def _misfit(one: Fit) -> float:
    """Root mean square of the residuals of runs that count, in log units."""
    return noise_sd(one.residuals[one.sample.weight > 0], one.law.size)


def _views(one: Fit, flops: Array, noise: float) -> Views:
    """The fit and its law's fits under every other focus."""
    sample = one.sample
    weights = weights_of(sample, flops, sample.weight > 0, one.law)
    points = refocus(one.law, sample, weights[None], one.point[None])[0]
    return look(one.law, sample, weights, points, noise, np.array([focus.depth for focus in FOCI]))


def _undecided(fits: Mapping[str, Fit], weights: Mapping[str, float], rollouts: Rollouts, noise: float) -> str | None:
    """Why the runs cannot tell the laws apart, and what would; None where they can, or where it would not matter."""
    if not len(rollouts.cuts):
        need = max(one.law.size for one in fits.values()) + SPARE
        return (
            f"no rollout was possible, so no law was tested: {need} runs or more are needed below the dearest budgets, "
            f"and two there"
        )
    ordered = sorted(weights, key=lambda each: -weights[each])
    first, second = (fits[name] for name in (ordered * 2)[:2])
    if weights[ordered[0]] >= TIE or len(ordered) < 2:
        return None
    flops = rollouts.flops.max() * np.geomspace(1, FARTHER, 11)
    where = first.allocation(flops)
    apart = np.abs(np.log(first.predict(*where) / second.predict(*where)))
    if not apart[-1] > CLEAR * noise:
        return None
    tells = float(flops[int(np.argmax(apart > CLEAR * noise))])
    return (
        f"the rollouts do not tell the laws {ordered[0]} and {ordered[1]} apart, and at {FARTHER:g} times the dearest "
        f"compute they differ by {100 * np.expm1(apart[-1]):.2g} %: the forecast is their mean; runs near the optimum "
        f"at {tells:.2g} FLOPs would tell"
    )
