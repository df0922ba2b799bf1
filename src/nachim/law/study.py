"""The whole reading of a table of runs: rollouts, the choice of a law, its fit, and honest intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nachim.law.fit import Fit, fit, sample_of, shortfall
from nachim.law.forms import Array, Scale
from nachim.law.interval import band, bootstrap, conformal_factor, mixture, noise_sd, quantiles
from nachim.law.laws import LAWS, law_named
from nachim.law.observe import Observations
from nachim.law.select import Regime, favoured, law_weights, regime, roll, rollout_scores
from nachim.spec.error import UserError

DRAWS = 200
WORK = 250_000
"""Upper bound of runs x draws in a bootstrap: very large tables need fewer draws, and get fewer."""


@dataclass(frozen=True)
class Allocation:
    """Compute-optimal scale `x` and `tokens` at `flops`, each with its 90 % interval."""

    flops: float
    x: float
    tokens: float
    x_interval: tuple[float, float]
    tokens_interval: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Study:
    """What a table of runs says. `fit` is the chosen law's; `fits` holds every law that the runs determine,
    `weights` its share in the disagreement between laws, `errors` its rollout error in percent (empty where
    no rollout was possible). `noise` is the run noise in log units; `factor` the conformal stretch."""

    fit: Fit
    fits: Mapping[str, Fit]
    weights: Mapping[str, float]
    errors: Mapping[str, float]
    noise: float
    factor: float
    regime: Regime | None
    refits: Mapping[str, Array]
    seed: int

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
        """90 % interval of the `model` and `data` exponents over all laws, by weight."""
        pairs = [self.fits[name].law.exponents(self._theta(self.fits[name])) for name in self.fits]
        model = self._pool([pair[0] for pair in pairs])
        return {"model": quantiles(model), "data": quantiles(1 - model)}

    def predict(self, x: Array | float, tokens: Array | float, level: float = 0.9) -> tuple[Array, Array, Array]:
        """Loss at scale `x` and `tokens`, with the `level` prediction interval of one run: point, low, high.

        The point is the mean of log loss over the laws, by their weights: where the rollouts cannot tell two laws
        apart, neither alone is the forecast.

        Raises UserError when a scale or a token count is not positive.
        """
        if not (np.all(np.asarray(x) > 0) and np.all(np.asarray(tokens) > 0)):
            raise UserError("a forecast needs a positive model scale and a positive number of tokens")
        log_x, log_tokens = np.broadcast_arrays(np.log(np.asarray(x, float)), np.log(np.asarray(tokens, float)))
        units = self.fit.sample.units
        inputs = (log_x.ravel() - np.log(units.x), log_tokens.ravel() - np.log(units.tokens))
        points = [one.law.value(one.point, *inputs) for one in self.fits.values()]
        centre = np.average(points, axis=0, weights=list(self.weights.values()))
        parts = [self.fits[name].law.value(self.refits[name], *inputs) for name in self.fits]
        rng = np.random.default_rng(self.seed)
        draws = mixture(parts, list(self.weights.values()), self.noise, rng)
        below, above = band(draws, centre, level, self.noise)
        ends = (centre, centre - self.factor * below, centre + self.factor * above)
        point, low, high = (units.loss * np.exp(end).reshape(log_x.shape) for end in ends)
        return point, low, high

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
    deviation of log loss between equal runs with other seeds, where it was measured; the residuals' own
    is used when larger. `draws` is how many refits the intervals come from, by default 200 (fewer for very large
    tables). Raises UserError when the runs determine no law, or not the one named.
    """
    scale = scale or obs.scales[0]
    sample = sample_of(obs, scale)
    if law != "auto" and (reason := shortfall(sample, law_named(law))):
        raise UserError(reason)
    laws = {name: one for name, one in LAWS.items() if not shortfall(sample, one)}
    if not laws:
        raise UserError(str(shortfall(sample, next(iter(LAWS.values())))))
    rng = np.random.default_rng(seed)
    rollouts = roll(laws, sample, obs.flops, rng)
    weights = law_weights(rollouts, laws)
    name = max(weights, key=lambda each: weights[each]) if law == "auto" else law
    weights = weights if law == "auto" else favoured(weights, law)
    reach = rollouts.bands(name, weights, noise, rng)
    fits = {each: fit(obs, one, scale) for each, one in laws.items()}
    count = draws or max(40, min(DRAWS, WORK // len(obs)))
    refits = {
        each: bootstrap(laws[each], sample, one.point[None], sample.weight[None], count, rng)[0]
        for each, one in fits.items()
    }
    own = noise_sd(fits[name].residuals[sample.weight > 0], laws[name].size)
    return Study(
        fit=fits[name],
        fits=fits,
        weights=weights,
        errors={each: 100 * rollouts.score(each) for each in laws} if len(rollouts.cuts) else {},
        noise=max(own, noise or 0.0),
        factor=conformal_factor(*rollout_scores(rollouts, name, reach)),
        regime=regime(rollouts, name, reach, own, noise or 0.0),
        refits=refits,
        seed=seed,
    )
