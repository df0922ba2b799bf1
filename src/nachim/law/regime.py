"""A change of regime: from some budget on, the runs lie beyond what all cheaper ones forecast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nachim.law.forms import Array
from nachim.law.select import FOCI, Rollouts
from nachim.spec.error import UserError

NOISES, BANDS, MISFIT = 4.0, 1.5, 2.0
"""How many noises, band reaches and cheap-run residuals a change of regime must exceed (see `regime`)."""
LEAST_NOISE = 1e-3
"""Below 0.1 % of loss a difference is no change of regime, however exact the runs are."""


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


def regime(rollouts: Rollouts, law: str, weights: Mapping[str, float], together: float, noise: float) -> Regime | None:
    """The change of regime that the rollouts show, if any; the plain views are asked, which follow no trend.

    A cut shows one when, from some budget on, the mean of every dearer budget is off the forecast of `law` in the same
    direction and outside its band, in which the laws share by `weights`; when the runs are off by far more than run
    noise and the band (medians of NOISES and BANDS times); and when fitting both sides at once leaves
    residuals, of standard deviation `together`, MISFIT times those of the cheap runs alone: a forecast from
    few runs may be poor without any change of regime. `noise` and LEAST_NOISE are floors of the run noise.
    Of the cuts that show one, the cut whose forecast is missed by the most bands tells where it begins.
    """
    plain = np.eye(len(FOCI))[0]
    centre = rollouts.mean({law: plain})
    reach = rollouts.reach(centre, {name: weight * plain for name, weight in weights.items()})
    found = []
    for cut in range(len(rollouts.cuts)):
        sd = max(float(rollouts.noise[law][cut]), noise, LEAST_NOISE)
        if together > MISFIT * sd:
            error = rollouts.actual - centre[cut]
            found.append(_displaced(rollouts, rollouts.ahead[cut], error, reach[cut], sd))
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
