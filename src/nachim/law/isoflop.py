"""A second opinion on the optimum: one parabola a compute budget, and a power law through their minima."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nachim.law.forms import Array, Scale
from nachim.law.observe import Observations
from nachim.law.select import budgets
from nachim.spec.error import UserError

FEWEST = 4
NEAR = 0.05
"""Only runs within this share of their budget's best loss shape its parabola: far out no parabola holds."""


@dataclass(frozen=True)
class Minimum:
    """The lowest point of one budget's parabola: optimal scale `x` and its `loss` at compute `flops`.

    `at_edge`: it lies outside the scales that were run, or there is none; the power law leaves it out.
    """

    flops: float
    x: float
    loss: float
    at_edge: bool


@dataclass(frozen=True)
class IsoFlop:
    """x_opt(C) = coefficient · C^exponent through the minima, with the exponent's 90 % interval."""

    minima: tuple[Minimum, ...]
    coefficient: float
    exponent: float
    exponent_interval90: tuple[float, float]

    def x_opt(self, flops: Array | float) -> Array:
        """Optimal scale at compute `flops`."""
        return np.asarray(self.coefficient * np.asarray(flops, float) ** self.exponent)


@dataclass(frozen=True, eq=False)
class _Parabola:
    log_x: Array
    log_loss: Array
    flops: float

    @property
    def curve(self) -> Array:
        return np.polyfit(self.log_x - self.log_x.mean(), self.log_loss, 2)

    def log_minimum(self, curve: Array) -> float:
        inside = self.log_x.min(), self.log_x.max()
        return float(np.clip(self.log_x.mean() - curve[1] / (2 * max(curve[0], 1e-12)), *inside))

    def minimum(self) -> Minimum:
        curve, low, high = self.curve, self.log_x.min(), self.log_x.max()
        place = self.log_minimum(curve)
        return Minimum(
            flops=self.flops,
            x=float(np.exp(place)),
            loss=float(np.exp(np.polyval(curve, place - self.log_x.mean()))),
            at_edge=bool(curve[0] <= 0 or place in (low, high)),
        )

    def redrawn(self, rng: np.random.Generator) -> float:
        fitted = np.polyval(self.curve, self.log_x - self.log_x.mean())
        slack = np.sqrt(len(fitted) / max(1, len(fitted) - 3))
        drawn = fitted + slack * rng.choice(self.log_loss - fitted, len(fitted))
        return self.log_minimum(np.polyfit(self.log_x - self.log_x.mean(), drawn, 2))


def isoflop(obs: Observations, scale: Scale, seed: int = 0, draws: int = 500) -> IsoFlop:
    """Approach 2 of arXiv 2203.15556: parabolas of log loss in log scale, a power law through their minima.

    Runs whose FLOPs agree within 10 % are one budget; a budget needs 4 runs near its best, of 3 scales or more. The
    interval is a residual bootstrap within each parabola. Known to be biased where the surface is not symmetric around
    its optimum (arXiv 2603.22339), hence only a second opinion. Raises UserError when fewer than 3 budgets have a
    minimum inside the scales that were run.
    """
    log_x, log_loss, label = np.log(obs.x(scale)), np.log(obs.loss), budgets(obs.flops)
    parabolas = []
    for number in range(label.max() + 1):
        near = (label == number) & (obs.weight > 0)
        near &= log_loss < np.min(log_loss[near], initial=np.inf) + NEAR
        if near.sum() >= FEWEST and len(np.unique(log_x[near].round(3))) >= 3:
            parabolas.append(_Parabola(log_x[near], log_loss[near], float(np.exp(np.log(obs.flops[near]).mean()))))
    minima = tuple(parabola.minimum() for parabola in parabolas)
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
    low, high = np.quantile(slopes, [0.05, 0.95])
    return IsoFlop(minima, float(np.exp(level)), float(slope), (float(low), float(high)))
