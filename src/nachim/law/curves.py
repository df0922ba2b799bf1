"""From task loss to accuracy: curves between a chance floor and a ceiling, fitted to all runs, tried by rollouts.

No form is known to be right, and where the runs end below the ceiling several describe them equally well; what those
disagree about, the prediction interval must hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from nachim.law.forms import Array
from nachim.law.interval import conformal_factor
from nachim.law.robust import Robust

SHARPNESS, MEAN_ABSOLUTE = 2.0, 0.8
"""A curve's weight falls with this power of its rollout error plus what noise alone makes one (0.8 of its standard
deviation): a smaller miss than another's within the noise of the accuracies themselves is no merit."""
CUTS = (0.5, 0.65, 0.8)
"""Rollouts fit the runs whose loss lies in the worse part, up to these shares of the range, and predict the better."""
LEAST = 2e-4
"""Noise of an accuracy is never taken to be below this: tables are rounded."""
PLACES, STEEPS, SHARES = np.linspace(-2.5, 1.0, 15), np.geomspace(1.0, 80.0, 12), (0.0, 0.3, 0.7, 1.0)
"""The grid of starts: where the middle lies and how steep it is, in units of the losses' range, and the free end."""
TRIES = 3
FEWEST = 6
"""Runs that a curve is fitted to, at least."""


@dataclass(frozen=True)
class Scores:
    """What is known of each run of a task: `loss` (n,), `accuracy` (n,), the `chance` of guessing right, and how many
    `items` the accuracy is a mean of (None where not known)."""

    loss: Array
    accuracy: Array
    chance: float
    items: float | None

    def subset(self, kept: npt.NDArray[np.bool_]) -> Scores:
        """Only the runs in `kept` (n,)."""
        return Scores(self.loss[kept], self.accuracy[kept], self.chance, self.items)

    def binomial(self, accuracy: Array) -> Array:
        """Standard deviation of a measured accuracy that the finite number of items makes."""
        inside = np.clip(accuracy, 0.02, 0.98)
        return np.sqrt(inside * (1 - inside) / self.items) if self.items else np.zeros_like(inside)


@dataclass(frozen=True)
class Curve:
    """A form of accuracy over task loss, floor + (top - floor) · link(-k·(L - L0)): a point is L0, log k and the end
    named by `free`; ends that are not free are chance and 1."""

    name: str
    link: Callable[[Array], Array]
    free: Literal["", "floor", "top"] = ""

    def value(self, point: Array, loss: Array, chance: float) -> Array:
        """Accuracy at `loss` (m,), shape (..., m) for points (..., size)."""
        z = point[..., None]
        floor = z[..., 2, :] if self.free == "floor" else chance
        top = z[..., 2, :] if self.free == "top" else 1.0
        return np.asarray(floor + (top - floor) * self.link(-np.exp(z[..., 1, :]) * (loss - z[..., 0, :])))

    def box(self, scores: Scores) -> tuple[Array, Array]:
        """Bounds of the point."""
        reach, chance = _reach(scores), scores.chance
        ends = [(scores.loss.min() - 5 * reach, scores.loss.max() + reach), (np.log(0.5 / reach), np.log(200 / reach))]
        ends += {"": [], "floor": [(0.0, chance + 0.25 * (1 - chance))], "top": [(0.5 * (1 + chance), 1.0)]}[self.free]
        low, high = np.array(ends).T
        return low, high

    def starts(self, scores: Scores, sd: Array) -> Array:
        """The best few points of a grid, (TRIES, size)."""
        low, high = self.box(scores)
        reach, shares = _reach(scores), SHARES if self.free else (0.0,)
        grid = np.array(list(itertools.product(PLACES, STEEPS, shares)))
        ends = [scores.loss.min() + grid[:, 0] * reach, np.log(grid[:, 1] / reach)]
        points = np.stack([*ends, *([low[2] + grid[:, 2] * (high - low)[2]] if self.free else [])], axis=1)
        points = np.clip(points, low + 1e-9, high - 1e-9)
        cost = (((self.value(points, scores.loss, scores.chance) - scores.accuracy) / sd) ** 2).sum(axis=1)
        best: Array = points[np.argsort(cost, kind="stable")[:TRIES]]
        return best


def _reach(scores: Scores) -> float:
    return max(float(np.ptp(scores.loss)), 1e-3)


def _steep(u: Array) -> Array:
    return -np.expm1(-np.exp(np.minimum(u, 50.0)))


def _slow(u: Array) -> Array:
    return np.exp(-np.exp(np.minimum(-u, 50.0)))


CURVES = (
    Curve("sigmoid", special.expit),
    Curve("sigmoid, free floor", special.expit, "floor"),
    Curve("sigmoid, free top", special.expit, "top"),
    Curve("exponential", _steep),
    Curve("slow", _slow),
)
"""The sigmoid of the OLMo ladder (arXiv 2412.04403 eq. 3; also arXiv 2407.21783 sec. 3.2.1) with both ends known, or
one of them free; the exponential error law Err = eps - k·exp(-gamma·L) of Gadre et al. (arXiv 2403.08540 eq. 5), which
is the tail of 1 - exp(-exp(u)) and so given a ceiling; and its mirror image, which nears the ceiling slowly."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A curve fitted to the scores of a task; `scatter` is the standard deviation of accuracies around it that the
    number of items does not explain, `solved` what gives its own uncertainty."""

    curve: Curve
    scores: Scores
    scatter: float
    solved: Robust

    @property
    def point(self) -> Array:
        """The curve's coefficients, in the order of its names."""
        return self.solved.point

    @property
    def coefficients(self) -> dict[str, float]:
        """Middle L0, steepness k, and the ends."""
        chance = self.scores.chance
        known = {"L0": self.point[0], "k": np.exp(self.point[1]), "floor": chance, "top": 1.0}
        return {
            name: float(value)
            for name, value in (
                known | dict.fromkeys([self.curve.free] * bool(self.curve.free), self.point[-1])
            ).items()
        }

    def value(self, loss: Array) -> Array:
        """Accuracy at `loss` (m,)."""
        return self.curve.value(self.point, loss, self.scores.chance)

    def spread(self, loss: float) -> tuple[float, float]:
        """Standard error of the accuracy at `loss` that the fit leaves open, and its degrees of freedom."""
        step = 1e-5 * np.maximum(1.0, np.abs(self.point))
        at = np.array([loss])
        slope = [
            float((self._moved(at, move) - self._moved(at, -move))[0]) / (2 * move[place])
            for place, move in enumerate(np.diag(step))
        ]
        return self.solved.spread(np.array(slope))

    def _moved(self, loss: Array, move: Array) -> Array:
        return self.curve.value(self.point + move, loss, self.scores.chance)

    def noise(self, loss: Array) -> Array:
        """Standard deviation of one more measured accuracy around the curve, (m,)."""
        return np.hypot(self.scores.binomial(self.value(loss)), self.scatter)


def fit_curve(curve: Curve, scores: Scores) -> Fitted:
    """Weighted least squares from the best of a grid; weights are of the binomial noise and of what else scatters."""
    bounds, scatter = curve.box(scores), LEAST
    sd = np.hypot(scores.binomial(scores.accuracy), scatter)
    starts = curve.starts(scores, sd)
    for _ in range(2):

        def off(z: Array, sd: Array = sd) -> Array:
            return (curve.value(z, scores.loss, scores.chance) - scores.accuracy) / sd

        tries = [optimize.least_squares(off, z, bounds=bounds, x_scale="jac", max_nfev=60) for z in starts]
        best = min(tries, key=lambda found: float(found.cost))
        fitted = curve.value(best.x, scores.loss, scores.chance)
        extra = ((scores.accuracy - fitted) ** 2).sum() / max(1, len(fitted) - len(best.x))
        extra -= float((scores.binomial(fitted) ** 2).mean())
        scatter = float(np.sqrt(max(extra, LEAST**2)))
        sd, starts = np.hypot(scores.binomial(fitted), scatter), best.x[None]
    slope = np.where(best.active_mask == 0, best.jac, 0.0)
    return Fitted(curve, scores, scatter, Robust(best.x, slope, -best.fun, np.arange(len(best.fun))))


@dataclass(frozen=True, eq=False)
class Choice:
    """Every curve fitted, `weights` by how well each predicted better runs from worse ones, and the stretch `factor`
    (at least 1) that would have made their intervals cover."""

    fits: dict[str, Fitted]
    weights: dict[str, float]
    errors: dict[str, float]
    factor: float

    @property
    def best(self) -> Fitted:
        """The curve of largest weight."""
        return self.fits[max(self.weights, key=lambda name: self.weights[name])]

    def value(self, loss: Array) -> Array:
        """Accuracy at `loss` (m,): the mean over the curves, by weight."""
        return sum(w * self.fits[name].value(loss) for name, w in self.weights.items())  # type: ignore[return-value]

    def draws(self, losses: Array, rng: np.random.Generator, *, noisy: bool = True) -> Array:
        """One accuracy for each of `losses` (m,), drawn: which curve, where it runs, and the noise of a measurement."""
        names = list(self.weights)
        which = rng.choice(len(names), size=len(losses), p=list(self.weights.values()))
        found = np.empty(len(losses))
        grid = np.quantile(losses, np.linspace(0, 1, 9)) if len(losses) > 9 else losses
        for place, name in enumerate(names):
            here, fitted = which == place, self.fits[name]
            if not here.any():
                continue
            pairs = [fitted.spread(float(loss)) for loss in grid]
            order = np.argsort(grid)
            error = np.interp(losses[here], grid[order], np.array([pair[0] for pair in pairs])[order])
            freedom = max(2.0, float(np.median([pair[1] for pair in pairs])))
            centre = fitted.value(losses[here])
            inside = np.clip(centre, 1e-4, 1 - 1e-4)
            slack = np.minimum(error, 0.5) / (inside * (1 - inside)) * rng.standard_t(freedom, here.sum())
            moved = special.expit(special.logit(inside) + slack)
            found[here] = moved + noisy * fitted.noise(losses[here]) * rng.standard_normal(here.sum())
        return np.clip(found, 0.0, 1.0)


def choose(scores: Scores) -> Choice:
    """Fit every curve that there are runs enough for, and weigh them by rollouts; alike where none can be made."""
    curves = [curve for curve in CURVES if len(scores.loss) > 3 + bool(curve.free)]
    fits = {curve.name: fit_curve(curve, scores) for curve in curves}
    misses: dict[str, list[Array]] = {name: [] for name in fits}
    stretch: list[Array] = []
    trust: list[Array] = []
    for share in CUTS:
        cut = scores.loss.max() - share * np.ptp(scores.loss)
        seen = scores.loss >= cut
        if seen.sum() < FEWEST or (~seen).sum() < 2:
            continue
        away = cut - scores.loss[~seen]
        tried = {name: fit_curve(fits[name].curve, scores.subset(seen)) for name in fits}
        guess = {name: one.value(scores.loss[~seen]) for name, one in tried.items()}
        for name in fits:
            misses[name].append(np.abs(guess[name] - scores.accuracy[~seen]) * away / away.sum())
        mean = np.mean(list(guess.values()), axis=0)
        reach = np.hypot(np.std(list(guess.values()), axis=0), tried["sigmoid"].noise(scores.loss[~seen]))
        stretch.append(np.abs(mean - scores.accuracy[~seen]) / (1.645 * reach))
        trust.append(away / away.sum())
    if not trust:
        return Choice(fits, {name: 1 / len(fits) for name in fits}, {}, 1.0)
    errors = {name: float(np.mean([part.sum() for part in parts])) for name, parts in misses.items()}
    noise = MEAN_ABSOLUTE * float(np.median([one.noise(scores.loss).mean() for one in fits.values()]))
    merit = {name: (error + noise) ** -SHARPNESS for name, error in errors.items()}
    weights = {name: value / sum(merit.values()) for name, value in merit.items()}
    factor = max(1.0, conformal_factor(np.concatenate(stretch), np.concatenate(trust)))
    return Choice(fits, weights, errors, factor)
