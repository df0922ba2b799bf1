"""What a fit is worth as an answer of an optimiser: is it a minimum, the only one, and do the runs fix it?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nachim.law.forms import Array, Law, Sample
from nachim.law.solve import stationarity

SAME = 1e-4
"""Two ends of the optimiser are one basin when no fitted run's log loss differs by more: 0.01 % of loss."""
STILL = 1e-8
"""An end is a minimum when a Newton step would lower the objective by less than this share of it."""
RIVAL = 0.05
"""A basin whose objective is at most this share above the best one's is a rival of it."""
SHAKY = 1e4
"""Condition number from which single coefficients mean little."""
OPEN = 1.0
"""A direction whose standard error exceeds this, a factor e in a size, is not determined."""


@dataclass(frozen=True)
class Basin:
    """A minimum: its `objective`, how many `starts` ended there, and how far `apart` its losses at the fitted runs are
    from the best fit's, at most, in percent (0 for the best); `point` (size,) is where, in the law's coordinates."""

    objective: float
    starts: int
    apart: float
    point: Array = field(repr=False, compare=False)


@dataclass(frozen=True)
class Certificate:
    """Evidence about one fit.

    `loss` is "huber" or "squared", on log residuals, Huber's linear beyond `delta`; `objective` its weighted *sum*.
    `gradient` is the norm of the objective's gradient in the law's normalised coordinates, less the part that presses
    against a bound; `condition` the condition number of the residuals' Jacobian there, `weakest` the coefficients that
    its weakest direction moves, and `weakest_error` their joint standard error, in those coordinates. `basins` are the
    minima found, best first, and `unfinished` counts those of the `starts` that had not settled. `at_bound` names
    coefficients pressed against a bound; `left_out` are the rows, counted from 1, of weight 0. `narrowest` is the
    input that varies least, and its range as a factor.
    """

    loss: str
    delta: float
    objective: float
    gradient: float
    condition: float
    weakest: tuple[str, ...]
    weakest_error: float
    narrowest: tuple[str, float]
    basins: tuple[Basin, ...]
    starts: int
    unfinished: int
    at_bound: tuple[str, ...]
    left_out: tuple[int, ...]

    @property
    def at_best(self) -> int:
        """How many starts ended in the best basin."""
        return self.basins[0].starts

    @property
    def rivals(self) -> tuple[Basin, ...]:
        """Other basins with an objective within RIVAL of the best."""
        return tuple(b for b in self.basins[1:] if b.objective <= (1 + RIVAL) * self.objective)

    def report(self) -> dict[str, object]:
        """The certificate as plain values, with its `line`; basins without their points."""
        basins = [{"objective": each.objective, "starts": each.starts, "apart": each.apart} for each in self.basins]
        mine = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return mine | {"basins": basins, "line": self.line()}

    def line(self) -> str:
        """The certificate in one line."""
        minima = (
            "one minimum"
            if len(self.basins) == 1
            else f"{len(self.basins)} minima, the second "
            + (f"{self.basins[1].objective:.8g} and up to {self.basins[1].apart:.2g} % away at a run")
        )
        return (
            f"certificate: {self.loss} objective {self.objective:.8g}, gradient {self.gradient:.0e}, condition "
            f"{self.condition:.0e}; {self.at_best} of {self.starts} starts agree; {minima}"
        )

    def doubts(self) -> list[str]:
        """What a reader of the coefficients must know, a sentence each; empty for a sound fit."""
        found = []
        name, factor = self.narrowest
        if self.at_bound:
            found.append(f"{', '.join(self.at_bound)} lies at the edge of its allowed range: these runs do not fix it")
        if self.weakest_error > OPEN:
            found.append(
                f"these runs do not determine {', '.join(self.weakest)} (known together within a factor of "
                f"{np.exp(min(self.weakest_error, 99.0)):.1g}): runs over a wider range of {name}, now {factor:.2g}x, "
                "would, or a law of fewer coefficients"
            )
        elif self.condition > SHAKY:
            found.append(f"condition number {self.condition:.0e}: trust predictions, not single coefficients")
        if self.at_best < 2:
            found.append(f"only one of {self.starts} starts reached the best fit: there may be a better one")
        if rivals := self.rivals:
            found.append(
                f"{len(rivals) + 1} minima fit within {RIVAL:.0%} of the best objective, up to "
                f"{max(rival.apart for rival in rivals):.2g} % apart at a fitted run: more runs would decide"
            )
        return found


def certify(law: Law, sample: Sample, point: Array, ends: Array, costs: Array, delta: float) -> Certificate:
    """The certificate of the fit `point` (size,), given where the starts ended (starts, size), at `costs` (starts,)."""
    use = sample.weight > 0
    _, slope, _ = law.expand(point, *sample.inputs)
    jacobian = (slope[:, use] * np.sqrt(sample.weight[use])).T
    together = np.concatenate([point[None], ends])
    target = np.broadcast_to(sample.log_loss, (len(together), len(sample.log_loss)))
    weight = np.broadcast_to(sample.weight, target.shape)
    gradient, gain, objective = stationarity(law, sample.inputs, target, weight, together, delta)
    settled = gain[1:] <= STILL * objective[1:] + 1e-24
    losses = law.value(together, *(column[use] for column in sample.inputs))
    residual = np.sqrt(sample.weight[use]) * (sample.log_loss[use] - losses[0])
    noise = np.sqrt((residual**2).sum() / max(1, len(residual) - law.size))
    pressed = (point <= law.low + 1e-9) | (point >= law.high - 1e-9)
    span = {name: float(np.exp(np.ptp(column[use]))) for name, column in zip(sample.names, sample.inputs, strict=True)}
    narrowest = min(span, key=lambda name: span[name])
    return Certificate(
        loss="squared" if np.isinf(delta) else "huber",
        delta=delta,
        objective=float(objective[0]),
        gradient=float(np.linalg.norm(gradient[0])),
        condition=float(np.linalg.cond(jacobian)),
        weakest=_weakest(jacobian, law.coefficient_names),
        weakest_error=float(noise / max(np.linalg.svd(jacobian, compute_uv=False)[-1], 1e-300)),
        narrowest=(narrowest, span[narrowest]),
        basins=_basins(losses, costs, settled, float(objective[0]), together),
        starts=len(ends),
        unfinished=int((~settled).sum()),
        at_bound=tuple(n for n, at in zip(law.coefficient_names, pressed, strict=True) if at),
        left_out=tuple((np.flatnonzero(~use) + 1).tolist()),
    )


def _weakest(jacobian: Array, names: Sequence[str]) -> tuple[str, ...]:
    """Names of the coefficients with at least half the largest share in the weakest right singular vector."""
    share = np.abs(np.linalg.svd(jacobian, full_matrices=False)[2][-1])
    return tuple(name for name, part in zip(names, share, strict=True) if part >= 0.5 * share.max())


def _basins(losses: Array, costs: Array, settled: Array, objective: float, points: Array) -> tuple[Basin, ...]:
    """Basins of the settled ends: `losses` (1 + starts, n) and `points` (1 + starts, size) hold the fit's first."""
    apart = np.abs(losses[1:, None] - losses[None, 1:]).max(axis=-1)
    from_best = np.abs(losses[1:] - losses[0]).max(axis=-1)
    best = (from_best <= SAME) | (costs <= objective * (1 + 1e-6) + 1e-20)
    found = [Basin(objective, int(best.sum()), 0.0, points[0])]
    left = [end for end in np.argsort(costs, kind="stable") if settled[end] and not best[end]]
    while left:
        here = [end for end in left if apart[left[0], end] <= SAME]
        away = float(100 * np.expm1(from_best[left[0]]))
        found.append(Basin(float(costs[left[0]]), len(here), away, points[1 + left[0]]))
        left = [end for end in left if end not in here]
    return tuple(found)
