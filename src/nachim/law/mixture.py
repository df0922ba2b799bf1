"""The mixture law: what held-out texts lose by which shares of corpora a model was trained on, and the best shares.

Each held-out text has a law of its own (`nachim.law.mixing`, arXiv 2403.16952), fitted to all runs; what is minimised
is a weighted sum of them, which is convex in the shares. Intervals are those of refits to runs whose residuals change
sign and size by trunk (a wild cluster bootstrap), together for all texts: runs of one trunk share their noise, and so
do the texts of one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import optimize, special

from nachim.law.fit import solve_many
from nachim.law.forms import Array, Law, Sample, Units
from nachim.law.interval import quantiles
from nachim.law.mixing import Mixing
from nachim.law.mixture_runs import MixtureRuns
from nachim.law.solve import minimise
from nachim.spec.error import UserError, nearest

DELTA = 0.01
"""Where Huber's loss turns linear: run noise, which the few runs of a design must average, lies within."""
STARTS = 12
DRAWS = 400
SEARCHES = 200
"""Refits whose own best shares are looked for."""
STEPS = 40
SIGNS = np.concatenate([-np.sqrt([0.5, 1.0, 1.5]), np.sqrt([0.5, 1.0, 1.5])])
"""What a trunk's residuals are multiplied with (Webb 2023): with few trunks more draws differ than by signs alone."""
APART = 0.02
"""A scale that varies less, in logs, is one value."""
MOST_WORTH = 20.0
"""Largest log of a multiplier of tokens: beyond it no number of tokens does."""


@dataclass(frozen=True)
class Forecast:
    """What a run will measure: the weighted sum of losses, and each text's, as (value, low, high) of 90 %."""

    loss: tuple[float, float, float]
    texts: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Best:
    """The `shares` of least loss, each with the 90 % interval of refits; `forecast` is of a run at them, and `held`
    names the corpora at the most that they were allowed."""

    shares: dict[str, float]
    interval90: dict[str, tuple[float, float]]
    forecast: Forecast
    held: tuple[str, ...]

    @property
    def point(self) -> Array:
        """The shares in the order of the corpora."""
        return np.array(list(self.shares.values()))


@dataclass(frozen=True, eq=False)
class MixtureFit:
    """The laws of all held-out texts, fitted to `runs`.

    `points` (texts, size) and `refits` (texts, draws, size) are in the coordinates of `law`, losses over `units`
    (texts,) and each column of `scales` over its unit; `residuals` (texts, n) are log(observed / predicted), and
    `inflated` those by their leverage; `condition` (texts,) is that of the Jacobian. `held_out` (texts, n) are
    log(observed / predicted) where the runs of a row's mixture took no part, NaN where the rest do not fix the law.
    """

    runs: MixtureRuns
    law: Mixing
    scales: Mapping[str, float]
    units: Array
    points: Array
    refits: Array
    residuals: Array
    inflated: Array
    condition: Array
    held_out: Array

    @property
    def largest(self) -> dict[str, float]:
        """The largest value of each scale that the law reads."""
        return {name: float(self.runs.scales[name].max()) for name in self.scales}

    @property
    def wider(self) -> float:
        """How much wider 90 % are for the few trunks there are: Student's quantile over the normal one."""
        freedom = max(1, int(self.runs.trunk.max()) - self.law.corpora)
        return float(special.stdtrit(freedom, 0.95) / special.ndtri(0.95))

    def coefficients(self) -> dict[str, dict[str, tuple[float, float, float]]]:
        """Of each text, with 90 % intervals, at the largest scale: its floor `c`, the height `k` and slopes `t/CORPUS`,
        which add up to 0; `alone/CORPUS`, its loss after that corpus alone; and the powers of scale, `power/SCALE`
        of the floor and `power/SCALE/CORPUS`."""
        found = {}
        for text, point, refits, unit in zip(self.runs.texts, self.points, self.refits, self.units, strict=True):
            value, drawn = self._named(point[None], unit), self._named(refits, unit)
            found[text] = {name: (float(value[name][0]), *quantiles(drawn[name])) for name in value}
        return found

    def _named(self, z: Array, unit: float) -> dict[str, Array]:
        logs, names = self.law.at(z, self._logs(self.largest)), self.runs.corpora
        floor, b = np.exp(logs[:, 0]), logs[:, 1:]
        height = b.mean(axis=1)
        powers = z.reshape(len(z), 1 + len(self.scales), -1)[:, 1:]
        return {
            "c": unit * floor,
            "k": unit * np.exp(height),
            **{f"t/{name}": b[:, place] - height for place, name in enumerate(names)},
            **{f"alone/{name}": unit * (floor + np.exp(b[:, place])) for place, name in enumerate(names)},
            **{
                f"power/{scale}{name}": powers[:, row, place]
                for row, scale in enumerate(self.scales)
                for place, name in enumerate(("", *(f"/{name}" for name in names)))
            },
        }

    def losses(self, shares: Array, scale: Mapping[str, float] | None = None) -> Array:
        """Loss of each text at `shares` (..., corpora) and a scale (the largest of the runs): (texts, ...)."""
        shares = np.asarray(shares, dtype=np.float64)
        points = self.points.reshape(len(self.units), *[1] * (shares.ndim - 1), self.law.size)
        return self._losses(points, shares, scale)

    def _losses(self, points: Array, shares: Array, scale: Mapping[str, float] | None) -> Array:
        logs = self.law.at(points, self._logs(scale or self.largest))
        each = np.exp(logs[..., 0]) + np.exp((logs[..., 1:] * shares).sum(axis=-1))
        return self.units.reshape(-1, *[1] * (each.ndim - 1)) * each

    def _logs(self, scale: Mapping[str, float]) -> Array:
        if missing := [name for name in self.scales if name not in scale]:
            raise UserError(f"the law of these runs reads {missing[0]!r}: say at which, as {missing[0]}=NUMBER")
        return np.log([scale[name] / unit for name, unit in self.scales.items()])

    def target(self, weights: Mapping[str, float] | None = None) -> Array:
        """How much each text counts in what is minimised, (texts,), adding up to 1; all alike unless `weights` say.

        Raises UserError for a text that is none, or weights that are negative or none above 0.
        """
        if weights is None:
            return np.full(len(self.units), 1 / len(self.units))
        for name in weights:
            if name not in self.runs.texts:
                raise UserError(f"no held-out text is called {name!r}{nearest(name, self.runs.texts)}")
        found = np.array([weights.get(name, 0.0) for name in self.runs.texts])
        if not np.isfinite(found).all() or found.min() < 0 or not found.sum():
            said = ", ".join(f"{name}={value:g}" for name, value in weights.items())
            raise UserError(f"the texts are to count by {said}: none may be negative, and one must be above 0")
        return found / found.sum()

    def forecast(
        self, shares: Array, target: Array, scale: Mapping[str, float] | None = None, seed: int = 0
    ) -> Forecast:
        """What one more run at `shares` (corpora,) will measure: refits and the noise of a run, for the weighted sum
        and for each text."""
        rng = np.random.default_rng(seed)
        centre, drawn = self.losses(shares, scale), self._losses(self.refits, shares, scale)
        row = rng.integers(len(self.runs), size=drawn.shape[1])
        drawn = drawn * np.exp(self.inflated[:, row] * rng.choice([-1.0, 1.0], size=drawn.shape[1]))
        wider = self.wider

        def ends(middle: float, values: Array) -> tuple[float, float, float]:
            low, high = (float(middle * (end / middle) ** wider) for end in quantiles(values))
            return middle, min(low, middle), max(high, middle)

        texts = {name: ends(float(c), d) for name, c, d in zip(self.runs.texts, centre, drawn, strict=True)}
        return Forecast(ends(float(target @ centre), target @ drawn), texts)

    def best(
        self, target: Array, scale: Mapping[str, float] | None = None, most: Sequence[float] | None = None
    ) -> Best:
        """The shares of least weighted loss at a scale (the runs' largest), none above its `most` (1 by default).

        They are looked for within the runs' own least and largest shares: where a corpus is all or nothing, a loss
        leaves the law's course. Raises UserError where the `most` add up to less than 1.
        """
        allowed = np.ones(self.law.corpora) if most is None else np.minimum(np.asarray(most, dtype=np.float64), 1.0)
        if allowed.sum() < 1:
            raise UserError(
                f"the corpora may make up {allowed.sum():.0%} of a run together: allow more epochs, or fewer tokens"
            )
        low, high = self.runs.shares.min(axis=0), np.minimum(self.runs.shares.max(axis=0), allowed)
        high = high if high.sum() >= 1 else allowed
        box = optimize.Bounds(np.minimum(low, high), high)
        found = self._least(self.points, target, scale, box, high / high.sum())
        searches = min(SEARCHES, self.refits.shape[1])
        drawn = np.array([self._least(self.refits[:, one], target, scale, box, found) for one in range(searches)])
        names = self.runs.corpora
        drawn = np.clip(found + self.wider * (drawn - found), box.lb, box.ub)
        ends = {name: quantiles(column) for name, column in zip(names, drawn.T, strict=True)}
        held = tuple(n for n, share, end in zip(names, found, allowed, strict=True) if end < 1 and share > end - 1e-6)
        shares = dict(zip(names, found.tolist(), strict=True))
        return Best(shares, ends, self.forecast(found, target, scale), held)

    def _least(
        self, points: Array, target: Array, scale: Mapping[str, float] | None, box: optimize.Bounds, start: Array
    ) -> Array:
        """The shares in `box` at which the laws of `points` (texts, size) sum to the least: convex, so where a search
        ends."""
        logs = self.law.at(points, self._logs(scale or self.largest))
        floor, slopes = self.units * np.exp(logs[:, 0]), logs[:, 1:]

        def loss(shares: Array) -> tuple[float, Array]:
            each = self._losses(points, shares, scale)
            return float(target @ each), (target * (each - floor)) @ slopes

        one = {"type": "eq", "fun": lambda shares: shares.sum() - 1, "jac": np.ones_like}
        options = {"ftol": 1e-12}
        found = optimize.minimize(loss, start, jac=True, bounds=box, constraints=[one], method="SLSQP", options=options)
        shares = np.clip(found.x, box.lb, box.ub)
        return shares / shares.sum()

    def worth(
        self,
        base: Array,
        better: Array,
        target: Array,
        scale: Mapping[str, float] | None = None,
        ratio: float | None = None,
    ) -> tuple[float, float, float] | None:
        """How many times more tokens a run at the shares `base` needs for the loss of one at `better`, with the 90 %
        interval of refits; infinite where no number would do. None where the runs all have one number of tokens.

        With a `ratio`, that of their losses as they were measured, the law only says what a change of loss is worth.
        """
        if "tokens" not in self.scales:
            return None
        points = np.concatenate([self.points[:, None], self.refits], axis=1)
        start = target @ self._losses(points, base, scale)
        wanted = target @ self._losses(points, better, scale) if ratio is None else ratio * start
        rows = points.reshape(*points.shape[:2], 1 + len(self.scales), -1)
        powers = rows[..., 1 + list(self.scales).index("tokens"), :]
        low, high = np.full(len(wanted), -MOST_WORTH), np.full(len(wanted), MOST_WORTH)
        for _ in range(60):
            middle = (low + high) / 2
            longer = points.copy()
            longer[..., : 1 + self.law.corpora] -= powers * middle[:, None]
            short = target @ self._losses(longer, base, scale) > wanted
            low, high = np.where(short, middle, low), np.where(short, high, middle)
        times = np.where(low > MOST_WORTH - 1e-6, np.inf, np.exp((low + high) / 2))
        ends = np.quantile(times[1:], [0.05, 0.95], method="nearest")
        return float(times[0]), float(ends[0]), float(ends[1])

    def doubts(self, best: Best | None = None) -> list[str]:
        """What a reader must know, a sentence each; empty for a sound fit."""
        found = []
        for text, condition in zip(self.runs.texts, self.condition, strict=True):
            if condition > 1e3:
                found.append(f"{text}: condition number {condition:.0e}: trust predictions, not single coefficients")
        for place, (name, share) in enumerate(best.shares.items() if best else ()):
            low, high = self.runs.shares[:, place].min(), self.runs.shares[:, place].max()
            if name not in best.held and min(share - low, high - share) < 1e-4:
                found.append(
                    f"the best share of {name}, {share:.3f}, is at the edge of what the runs had ({low:.3f} to "
                    f"{high:.3f}): runs beyond it would tell whether more is to be won there"
                )
        return found


def plain(worth: tuple[float, float, float] | None) -> dict[str, float | None] | None:
    """What `MixtureFit.worth` found as plain JSON values: None where no number of tokens would do."""
    if worth is None:
        return None
    return {k: v if np.isfinite(v) else None for k, v in zip(("multiplier", "low", "high"), worth, strict=True)}


def fit_mixture(runs: MixtureRuns, seed: int = 0, draws: int = DRAWS) -> MixtureFit:
    """Fit the mixture law of every held-out text to `runs`; deterministic.

    Raises UserError, saying what would be enough, when the runs cannot determine it.
    """
    scales = _scales(runs)
    law = Mixing(len(runs.corpora), len(scales))
    logs = [np.log(runs.scales[name] / unit) for name, unit in scales.items()]
    _check(runs, logs)
    inputs = (*runs.shares.T, *logs)
    units = np.exp(np.log(runs.losses).mean(axis=0))
    trunk = runs.trunk
    signs = np.random.default_rng(seed).choice(SIGNS, size=(draws, int(trunk.max()) + 1))[:, trunk]
    whole = np.ones(len(runs))
    columns = [
        _fit_text(law, Sample((), inputs, np.log(loss / unit), whole, Units(1.0, 1.0, unit)), runs.mixture, signs)
        for loss, unit in zip(runs.losses.T, units, strict=True)
    ]
    parts = [np.stack(each) for each in zip(*columns, strict=True)]
    return MixtureFit(runs, law, scales, units, *parts)


def _fit_text(law: Mixing, sample: Sample, mixture: Array, signs: Array) -> tuple[Array, ...]:
    """Point, refits, residuals, these inflated, condition number and held-out errors of one text."""
    as_law = cast(Law, law)  # a law to the solver
    without = np.array([mixture != one for one in range(int(mixture.max()) + 1)], dtype=np.float64)
    points, _, _ = solve_many(as_law, sample, np.concatenate([sample.weight[None], without]), STARTS, DELTA)
    value, slope, _ = law.expand(points[0], *sample.inputs)
    basis, _ = np.linalg.qr(slope.T)
    residual = sample.log_loss - value
    inflated = residual / np.sqrt(1 - np.minimum((basis**2).sum(axis=1), 0.9))
    weight = np.ones_like(signs)
    start = np.repeat(points[:1], len(signs), axis=0)
    refits, _ = minimise(as_law, sample.inputs, value + inflated * signs, weight, start, DELTA, STEPS)
    held = sample.log_loss - law.value(points[1:], *sample.inputs)[mixture, np.arange(len(mixture))]
    fixed = np.array([_fixes(sample.inputs, row > 0, law.corpora) for row in without])[mixture]
    return points[0], refits, residual, inflated, np.linalg.cond(slope), np.where(fixed, held, np.nan)


def _fixes(inputs: Sequence[Array], use: Array, corpora: int) -> bool:
    """Whether the mixtures of the rows `use` suffice for a law: one more than there are corpora, not all on a line."""
    shares, logs = np.stack(inputs[:corpora], axis=1)[use], [one[use, None] for one in inputs[corpora:]]
    columns = np.concatenate([shares, *(shares * log for log in logs)], axis=1)
    mixtures = len(np.unique(np.round(shares, 4), axis=0))
    return mixtures > corpora and np.linalg.matrix_rank(columns, tol=1e-3) == columns.shape[1]


def _scales(runs: MixtureRuns) -> dict[str, float]:
    """The columns of scale that vary, each not only with those before it, with the geometric mean of each."""
    found: dict[str, float] = {}
    known: list[Array] = []
    for name, column in runs.scales.items():
        logs = np.log(column)
        both = np.stack([*known, logs - logs.mean()])
        if np.ptp(logs) > APART and np.linalg.matrix_rank(both, tol=APART) == len(both):
            found[name] = float(np.exp(logs.mean()))
            known.append(logs - logs.mean())
    return found


def _check(runs: MixtureRuns, logs: list[Array]) -> None:
    corpora, mixtures = len(runs.corpora), int(runs.mixture.max()) + 1
    if mixtures < corpora + 2:
        raise UserError(
            f"the runs are of {mixtures} mixture{'s' * (mixtures != 1)}: the law of {corpora} corpora has "
            f"{corpora + 1} coefficients for each held-out text, so runs of {corpora + 2} mixtures or more are needed"
        )
    if not _fixes((*runs.shares.T, *logs), np.ones(len(runs), dtype=bool), corpora):
        raise UserError(
            "the shares of the runs do not move apart from each other (or from their scale), so that nothing tells "
            f"what each of {', '.join(runs.corpora)} does: train mixtures that differ in every share by itself"
        )
