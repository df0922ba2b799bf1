"""Where the optimum lies, read off one budget at a time: parabolas, and Akima splines; and how wrong parabolas are.

Both are second opinions on the exponent that the fitted surface gives. A parabola through a curve that is none has its
vertex beside the optimum (arXiv 2603.22339): by how much depends on the surface and on where the runs lie, so it is
computed for the runs at hand, and said where it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from nachim.law.fit import Fit
from nachim.law.forms import FLOPS_PER_UNIT, Array, Scale
from nachim.law.interval import noise_sd, quantiles
from nachim.law.observe import Observations
from nachim.law.select import budgets
from nachim.spec.error import UserError

if TYPE_CHECKING:
    from nachim.law.study import Study

FEWEST = 4
NEAR = 0.05
"""Only runs within this share of their budget's best loss shape its parabola: far out no parabola holds."""
FEWEST_SCALES = 3
FINENESS = 25
"""Points of the grid on which a spline's minimum is sought, for each scale but one (arXiv 2406.19146, section 3)."""
LEAST_SPREAD = 0.33
"""No minimum is known better than to this share of the mean gap between scales (as arXiv 2406.19146 weights it)."""
COPIES = 1000
BIASED_EXPONENT, BIASED_X = 0.005, 0.05
"""A reading is biased where the law's own runs would move its exponent by more than the first, or its optimum at the
dearest budget by more than the second (relative): published exponents are quoted to 0.01, and the paper's grids of
±8x to ±16x on Chinchilla's surface are 3 to 5 % off."""

Method = Literal["parabola", "akima", "surface"]


class Normal(Protocol):
    """What draws standard normal numbers: a numpy Generator, or a RandomState to repeat published draws."""

    def standard_normal(self, size: tuple[int, int]) -> Array:
        """Draws of shape `size`."""


@dataclass(frozen=True)
class Minimum:
    """The lowest point of one budget's curve: optimal scale `x` and its `loss` at compute `flops`.

    `at_edge`: it lies outside the scales that were run, or there is none; the power law leaves it out. `span` is the
    smallest and the largest scale of the runs that shaped the curve, `product` their geometric mean of scale times
    tokens (a table's FLOPs may count more than 6·N·D does).
    """

    flops: float
    x: float
    loss: float
    at_edge: bool
    span: tuple[float, float]
    product: float


@dataclass(frozen=True)
class IsoFlop:
    """x_opt(C) = coefficient · C^exponent through the minima, with the exponent's 90 % interval.

    `noise` is the scatter of the runs of one budget, in log loss: around the parabolas, or what splines were given.
    """

    minima: tuple[Minimum, ...]
    coefficient: float
    exponent: float
    exponent_interval90: tuple[float, float]
    noise: float

    def x_opt(self, flops: Array | float) -> Array:
        """Optimal scale at compute `flops`."""
        return np.asarray(self.coefficient * np.asarray(flops, float) ** self.exponent)


@dataclass(frozen=True, eq=False)
class _Budget:
    """The runs of one budget, their scales and losses in logs, each (n,); `noise` (n,) in loss."""

    log_x: Array
    log_loss: Array
    noise: Array
    flops: float
    product: float

    def minimum(self, log_x: float, log_loss: float, at_edge: bool) -> Minimum:
        """The Minimum that lies at log scale `log_x`."""
        span = float(np.exp(self.log_x.min())), float(np.exp(self.log_x.max()))
        return Minimum(self.flops, float(np.exp(log_x)), float(np.exp(log_loss)), at_edge, span, self.product)


class _Parabola(_Budget):
    """A budget read by a parabola."""

    @property
    def curve(self) -> Array:
        return np.polyfit(self.log_x - self.log_x.mean(), self.log_loss, 2)

    def log_minimum(self, curve: Array) -> float:
        inside = self.log_x.min(), self.log_x.max()
        return float(np.clip(self.log_x.mean() - curve[1] / (2 * max(curve[0], 1e-12)), *inside))

    def vertex(self) -> Minimum:
        """Its lowest point."""
        curve = self.curve
        place = self.log_minimum(curve)
        at_edge = curve[0] <= 0 or place in (self.log_x.min(), self.log_x.max())
        return self.minimum(place, float(np.polyval(curve, place - self.log_x.mean())), bool(at_edge))

    @property
    def residuals(self) -> Array:
        """Log loss less the parabola, (n,)."""
        return self.log_loss - np.polyval(self.curve, self.log_x - self.log_x.mean())

    def redrawn(self, rng: np.random.Generator) -> float:
        off = self.residuals
        slack = np.sqrt(len(off) / max(1, len(off) - 3))
        drawn = self.log_loss - off + slack * rng.choice(off, len(off))
        return self.log_minimum(np.polyfit(self.log_x - self.log_x.mean(), drawn, 2))


def isoflop(obs: Observations, scale: Scale, seed: int = 0, draws: int = 500) -> IsoFlop:
    """Approach 2 of arXiv 2203.15556: parabolas of log loss in log scale, a power law through their minima.

    Runs whose FLOPs agree within 10 % are one budget; a budget needs 4 runs near its best, of 3 scales or more. The
    interval is a residual bootstrap within each parabola: it knows nothing of the parabola's bias (see `bias_of`).
    Raises UserError when fewer than 3 budgets have a minimum inside the scales that were run.
    """
    parabolas = []
    for one in _by_budget(obs, scale):
        near = one.log_loss < one.log_loss.min() + NEAR
        if near.sum() >= FEWEST and len(np.unique(one.log_x[near].round(3))) >= FEWEST_SCALES:
            parabolas.append(_Parabola(one.log_x[near], one.log_loss[near], one.noise[near], one.flops, one.product))
    minima = tuple(parabola.vertex() for parabola in parabolas)
    inside = [p for p, m in zip(parabolas, minima, strict=True) if not m.at_edge]
    if len(inside) < 3:
        raise UserError(
            f"{len(inside)} budgets have a minimum inside the scales that were run: an IsoFLOP reading "
            f"needs 3, each with {FEWEST} runs of other scales around it"
        )
    log_c = np.log([p.flops for p in inside])
    slope, level = np.polyfit(log_c, np.log([m.x for m in minima if not m.at_edge]), 1)
    rng = np.random.default_rng(seed)
    slopes = [np.polyfit(log_c, [p.redrawn(rng) for p in inside], 1)[0] for _ in range(draws)]
    off = np.concatenate([p.residuals for p in inside])
    noise = noise_sd(off, 3 * len(inside))
    return IsoFlop(minima, float(np.exp(level)), float(slope), quantiles(np.array(slopes)), noise)


def akima(
    obs: Observations,
    scale: Scale,
    noise: Array | float,
    rng: Normal,
    copies: int = COPIES,
    weighted: bool = True,
) -> IsoFlop:
    """The interpolation of arXiv 2406.19146 (section 3): an Akima spline of log loss in log scale for each budget.

    `noise` is the standard deviation of a run's loss, in its unit, one number or (n,). Every budget is read `copies`
    times with that noise added; the median of the minima found inside the runs is its optimum, their spread its
    standard error, by whose inverse square the power law is `weighted`. The best run of each scale counts; a budget
    needs 3 scales, a minimum inside them, and one in half of its copies. The interval is over the copies.
    Raises UserError when fewer than 3 budgets have a minimum inside the scales that were run.
    """
    runs = [one for one in _by_budget(obs, scale, noise) if len(np.unique(one.log_x)) >= FEWEST_SCALES]
    read = [_spline_minima(one, rng, copies) for one in runs]
    inside = [(minimum, places, spread) for minimum, places, spread in read if not minimum.at_edge]
    if len(inside) < 3:
        raise UserError(
            f"{len(inside)} budgets have a minimum inside the scales that were run: a reading by splines "
            f"needs 3, each with runs of {FEWEST_SCALES} scales around it"
        )
    log_c = np.log([minimum.flops for minimum, _, _ in inside])
    weight = np.array([spread**-2.0 if weighted else 1.0 for _, _, spread in inside])
    slope, level = _line(log_c, np.log([[minimum.x] for minimum, _, _ in inside]), weight)
    count = min(len(places) for _, places, _ in inside)
    slopes, _ = _line(log_c, np.array([places[:count] for _, places, _ in inside]), weight)
    minima = tuple(minimum for minimum, _, _ in read)
    given = float(np.mean(noise / obs.loss))
    return IsoFlop(minima, float(np.exp(level[0])), float(slope[0]), quantiles(slopes), given)


def _by_budget(obs: Observations, scale: Scale, noise: Array | float = 0.0) -> list[_Budget]:
    log_x, log_loss, label = np.log(obs.x(scale)), np.log(obs.loss), budgets(obs.flops)
    sd = np.broadcast_to(np.asarray(noise, float), log_loss.shape)
    found = []
    for number in range(label.max() + 1):
        here = (label == number) & (obs.weight > 0)
        if here.any():
            flops = float(np.exp(np.log(obs.flops[here]).mean()))
            product = float(np.exp((log_x + np.log(obs.tokens))[here].mean()))
            found.append(_Budget(log_x[here], log_loss[here], sd[here], flops, product))
    return found


def _spline_minima(one: _Budget, rng: Normal, copies: int) -> tuple[Minimum, Array, float]:
    """A budget's optimum; log x of the copies' inner minima (at most `copies`); their spread in log x."""
    # Only here: scipy.interpolate takes longer to import than a fit takes.
    from scipy.interpolate import Akima1DInterpolator

    order = np.lexsort((one.log_loss, one.log_x))
    best = order[np.unique(one.log_x[order], return_index=True)[1]]
    log_x, loss = one.log_x[best], np.exp(one.log_loss[best])
    grid = np.linspace(log_x[0], log_x[-1], FINENESS * (len(log_x) - 1))
    drawn = loss + one.noise[best] * rng.standard_normal((copies, len(loss)))
    drawn = np.maximum(drawn, loss / 10)  # noise never makes a loss that has no logarithm
    plain = Akima1DInterpolator(log_x, np.log(loss))(grid)
    lowest = Akima1DInterpolator(log_x, np.log(drawn).T)(grid).argmin(axis=0)
    places = grid[lowest[(lowest > 0) & (lowest < len(grid) - 1)]]
    at_edge = plain.argmin() in (0, len(grid) - 1) or len(places) < copies // 2
    place = float(np.median(places)) if len(places) else float(grid[plain.argmin()])
    least = LEAST_SPREAD * FINENESS * (grid[1] - grid[0])
    spread = max(float(np.std(places)), least) * copies / len(places) if len(places) else np.inf
    return one.minimum(place, float(np.interp(place, grid, plain)), bool(at_edge)), places, spread


def _near_best(obs: Observations) -> npt.NDArray[np.bool_]:
    """Which runs lie within NEAR of the best of their budget, (n,)."""
    label, log_loss = budgets(obs.flops), np.log(obs.loss)
    best = np.full(label.max() + 1, np.inf)
    np.minimum.at(best, label, np.where(obs.weight > 0, log_loss, np.inf))
    return log_loss < best[label] + NEAR


def _line(log_c: Array, log_x: Array, weight: Array) -> tuple[Array, Array]:
    """Slopes and levels (m,) of weighted least squares of `log_x` (n, m) on `log_c` (n,)."""
    share = weight / weight.sum()
    away = log_c - share @ log_c
    slope = (share * away) @ log_x / ((share * away) @ away)
    return slope, share @ log_x - slope * (share @ log_c)


@dataclass(frozen=True)
class Bias:
    """What an estimator reads, where the very runs lie exactly on the fitted law, less what that law says itself.

    `exponent` is the difference of the exponents over the same budgets; `x` the relative error of the optimum at the
    dearest of them, at compute `flops`. Of the runs: `width` is the ratio of the largest to the smallest scale of a
    budget (median), `offset` how far their middle lies above the optimum (median ratio), `drift` by what factor
    that offset grows from the cheapest to the dearest budget.
    """

    exponent: float
    x: float
    flops: float
    width: float
    offset: float
    drift: float

    @property
    def matters(self) -> bool:
        """Whether the estimator is biased on these runs by more than BIASED_EXPONENT or BIASED_X."""
        return abs(self.exponent) > BIASED_EXPONENT or abs(self.x) > BIASED_X

    def __str__(self) -> str:
        side = "above" if self.offset > 1 else "below"
        away = max(self.offset, 1 / self.offset)
        return (
            f"on runs of the fitted law they would read an exponent {self.exponent:+.3f} off, and an optimum "
            f"{100 * self.x:+.0f} % off at {self.flops:.2g} FLOPs (a budget's scales span {self.width:.2g}x, their "
            f"middle lies {away:.2g}x {side} the optimum and drifts {self.drift:.2g}x over the budgets)"
        )


def bias_of(method: Literal["parabola", "akima"], obs: Observations, fitted: Fit) -> Bias | None:
    """The bias of an IsoFLOP estimator on these runs if `fitted`, the fit to `obs`, is right; None if it reads none.

    The estimator sees the law's own losses at the very runs, without noise (the experiment of arXiv 2603.22339, for
    the grid at hand). It is as good as the law is.
    """
    sample, scale = fitted.sample, fitted.scale
    exact = sample.units.loss * np.exp(sample.log_loss - fitted.residuals)
    clean = replace(obs, loss=exact)
    try:
        if method == "parabola":
            read = isoflop(clean, scale, draws=2)
        else:
            read = akima(clean, scale, 0.0, np.random.default_rng(0), copies=2)
    except UserError:
        return None
    inner = [minimum for minimum in read.minima if not minimum.at_edge]
    log_c = np.log([minimum.flops for minimum in inner])
    spent = [FLOPS_PER_UNIT[scale] * minimum.product for minimum in inner]
    truth = np.log([float(fitted.allocation(flops)[0]) for flops in spent])
    slope, _ = _line(log_c, truth[:, None], np.ones(len(inner)))
    off = np.log([np.sqrt(minimum.span[0] * minimum.span[1]) for minimum in inner]) - truth
    drift = _line(log_c, off[:, None], np.ones(len(inner)))[0][0] * (log_c.max() - log_c.min())
    return Bias(
        exponent=float(read.exponent - slope[0]),
        x=float(np.expm1(np.log(read.x_opt(inner[-1].flops)) - truth[-1])),
        flops=inner[-1].flops,
        width=float(np.median([minimum.span[1] / minimum.span[0] for minimum in inner])),
        offset=float(np.exp(np.median(off))),
        drift=float(np.exp(drift)),
    )


@dataclass(frozen=True)
class Estimate:
    """One estimator's exponent of the optimal scale, with its 90 % interval and its bias on these runs, where it has
    one to compute. `budgets` shaped it, the minima of `at_edge` more lie outside their runs. `exponent` is None where
    it reads nothing, and `reason` says why. `noise` is the scatter of runs, in log loss, that it rests on; of the
    surface, by how much it misses the runs that parabolas are drawn through."""

    method: Method
    exponent: float | None
    interval90: tuple[float, float] | None
    budgets: int
    at_edge: int
    bias: Bias | None
    noise: float
    reason: str | None = None


def estimates(obs: Observations, reading: Study) -> Sequence[Estimate]:
    """The three estimators side by side: parabola, Akima spline, and the surface, which variable projection fits.

    The surface has no such bias (arXiv 2603.22339 section 5), where its law is right. Splines are given the scatter of
    runs around the parabolas of their budgets, or the law's own residuals where those are smaller.
    """
    scale, found, noise = reading.fit.scale, [], reading.noise
    methods: tuple[Literal["parabola", "akima"], ...] = ("parabola", "akima")
    for method in methods:
        try:
            if method == "parabola":
                read = isoflop(obs, scale, reading.seed)
            else:
                read = akima(obs, scale, noise * obs.loss, np.random.default_rng(reading.seed))
        except UserError as error:
            found.append(Estimate(method, None, None, 0, 0, None, noise, str(error)))
            continue
        noise = min(noise, read.noise)
        inside = sum(not minimum.at_edge for minimum in read.minima)
        bias = bias_of(method, obs, reading.fit)
        outside = len(read.minima) - inside
        found.append(Estimate(method, read.exponent, read.exponent_interval90, inside, outside, bias, read.noise))
    counted = int(budgets(obs.flops).max()) + 1
    surface = reading.exponents["model"], reading.exponents_interval90["model"]
    near = _near_best(obs) & (obs.weight > 0)
    misfit = noise_sd(reading.fit.residuals[near], 0)
    return (*found, Estimate("surface", *surface, counted, 0, None, misfit))
