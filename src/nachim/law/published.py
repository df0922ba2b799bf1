"""Laws by name, from the literature, and laws from a file of `nachim fit --json`: where the optimum lies, and its loss.

Pure Python: a planner that answers in a third of a second cannot wait for numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nachim.spec import Decoder, UserError
from nachim.spec.error import nearest

Scale = Literal["flops_per_token", "params_total", "params_non_embedding"]
Interval = tuple[float, float]

FLOPS_PER_UNIT: dict[Scale, float] = {"flops_per_token": 1.0, "params_total": 6.0, "params_non_embedding": 6.0}
"""Training FLOP per token and unit of scale: each law's own accounting, C = M·D or C = 6·N·D."""
SCALES: dict[str, Scale] = {"flops_per_token": "flops_per_token", "params": "params_total"}
"""What the scales of a table of runs are here."""
Z90 = 1.6449
"""Standard deviations from the middle of a normal distribution to the ends of its 90 % interval."""
STEP = 1e-4
"""Step of the differences that stand for derivatives by a law's coefficients."""


@dataclass(frozen=True)
class Power:
    """`coefficient`·C^`exponent`, C in FLOP."""

    coefficient: float
    exponent: float

    def __call__(self, flops: Any) -> Any:
        """Its value at `flops`: a number, or an array of numpy's."""
        return self.coefficient * flops**self.exponent


MODEL_OPT = Power(0.1715, 0.5243)
"""DeepSeek's optimal M, FLOP/token (arXiv 2401.02954, eq. 4)."""
DATA_OPT = Power(5.8316, 0.4757)
"""DeepSeek's optimal training tokens (arXiv 2401.02954, eq. 4)."""
BATCH_OPT = Power(0.2920, 0.3271)
"""DeepSeek's optimal batch in *tokens* (arXiv 2401.02954, eq. 1)."""
LR_OPT = Power(0.3118, -0.1250)
"""DeepSeek's optimal peak learning rate (arXiv 2401.02954, eq. 1)."""


@dataclass(frozen=True)
class Spread:
    """How sure a surface is: `covariance` of (E, ln A - alpha ln x, ln B - beta ln D, alpha, beta, k).

    They are taken at `x` and D = `tokens`, amid the runs, where coefficients trade least against each other. `noise` is
    the standard deviation of log loss of one run; `factor` stretches the interval, where rollouts showed it too narrow.
    """

    x: float
    tokens: float
    covariance: tuple[tuple[float, ...], ...]
    noise: float
    factor: float = 1.0


@dataclass(frozen=True)
class Surface:
    """loss = E + (A·x^-alpha + B·D^-beta)^k in nat/token; k = 1 is Chinchilla's form (arXiv 2203.15556, eq. 2)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    k: float = 1.0
    spread: Spread | None = None

    def loss(self, x: float, tokens: float) -> float:
        """Loss at scale `x` after `tokens` tokens."""
        return float(self.E + (self.A * x**-self.alpha + self.B * tokens**-self.beta) ** self.k)

    def best_x(self, product: float) -> float:
        """The scale of least loss when scale x tokens = `product` (arXiv 2203.15556, eq. 4)."""
        log_g = math.log(self.alpha * self.A) - math.log(self.beta * self.B)
        return math.exp((log_g + self.beta * math.log(product)) / (self.alpha + self.beta))

    def loss_interval(self, x: float, tokens: float) -> Interval | None:
        """90 % prediction interval of one run's loss: coefficients and run noise; None where no spread is known."""
        return self._interval(lambda surface: math.log(surface.loss(x, tokens)), noisy=True)

    def best_x_interval(self, product: float) -> Interval | None:
        """90 % interval of `best_x`; None where no spread is known."""
        return self._interval(lambda surface: math.log(surface.best_x(product)), noisy=False)

    def _interval(self, log_of: Callable[[Surface], float], noisy: bool) -> Interval | None:
        """Of a quantity whose logarithm `log_of` gives, to first order in the coefficients (the delta method)."""
        if self.spread is None:
            return None
        centre = self._coordinates(self.spread)
        slope = []
        for i in range(len(self.spread.covariance)):
            ends = [[z + sign * STEP * (i == j) for j, z in enumerate(centre)] for sign in (1, -1)]
            above, below = (log_of(self._at(end, self.spread)) for end in ends)
            slope.append((above - below) / (2 * STEP))
        rows = zip(slope, self.spread.covariance, strict=True)
        variance = sum(one * other * value for one, row in rows for other, value in zip(slope, row, strict=True))
        sd = math.sqrt(max(0.0, variance) + (self.spread.noise**2 if noisy else 0.0))
        middle, reach = log_of(self), Z90 * sd * (self.spread.factor if noisy else 1.0)
        return math.exp(middle - reach), math.exp(middle + reach)

    def _coordinates(self, at: Spread) -> list[float]:
        log_a = math.log(self.A) - self.alpha * math.log(at.x)
        log_b = math.log(self.B) - self.beta * math.log(at.tokens)
        return [self.E, log_a, log_b, self.alpha, self.beta, self.k][: len(at.covariance)]

    @staticmethod
    def _at(z: Sequence[float], at: Spread) -> Surface:
        a, b = math.exp(z[1] + z[3] * math.log(at.x)), math.exp(z[2] + z[4] * math.log(at.tokens))
        return Surface(z[0], a, b, z[3], z[4], *z[5:])


@dataclass(frozen=True)
class Optimum:
    """Scale and tokens of least loss at compute `flops`, as a law says; intervals are None where it has none."""

    flops: float
    x: float
    tokens: float
    x_interval: Interval | None
    tokens_interval: Interval | None


@dataclass(frozen=True)
class KnownLaw:
    """A law of the literature, or of a file: it gives the optimum by `place` (a power of C) or by its `surface`.

    `exponent_interval` is of the scale's growth with C, at `level` percent; it turns about `pivot`, the compute (FLOP)
    in the middle of the runs behind the law. `measured` is the range of compute (FLOP) of those runs.
    """

    name: str
    source: str
    scale: Scale
    place: Power | None = None
    surface: Surface | None = None
    exponent_interval: Interval | None = None
    level: int = 90
    pivot: float = 1e20
    measured: Interval | None = None
    note: str = ""

    def optimum(self, flops: float) -> Optimum:
        """The compute-optimal scale and tokens at `flops`, by the law's own accounting of compute."""
        product = flops / FLOPS_PER_UNIT[self.scale]
        if self.place is not None:
            x, interval = float(self.place(flops)), self._turned(flops)
        else:
            assert self.surface is not None  # a law has one or the other
            x = self.surface.best_x(product)
            interval = self._turned(flops) or self.surface.best_x_interval(product)
        tokens = interval and (product / interval[1], product / interval[0])
        return Optimum(flops, x, product / x, interval, tokens)

    def _turned(self, flops: float) -> Interval | None:
        """The interval of the scale at `flops` that follows from the exponent's."""
        if self.exponent_interval is None:
            return None
        at_pivot, reach = self._x(self.pivot), flops / self.pivot
        ends = sorted(at_pivot * reach**exponent for exponent in self.exponent_interval)
        return ends[0], ends[1]

    def _x(self, flops: float) -> float:
        if self.place is not None:
            return float(self.place(flops))
        assert self.surface is not None  # a law has one or the other
        return self.surface.best_x(flops / FLOPS_PER_UNIT[self.scale])


CORRECTED = Surface(
    E=1.8172,
    A=482.01,
    B=2085.43,
    alpha=0.3478,
    beta=0.3658,
    spread=Spread(
        x=1e9,
        tokens=2e10,
        covariance=(
            (6.639e-4, -8.567e-4, -1.0487e-3, 2.259e-4, 3.271e-4),
            (-8.567e-4, 3.6667e-3, -1.3812e-3, -9.045e-4, 3.581e-4),
            (-1.0487e-3, -1.3812e-3, 4.6113e-3, 2.949e-4, -1.3678e-3),
            (2.259e-4, -9.045e-4, 2.949e-4, 2.285e-4, -7.75e-5),
            (3.271e-4, 3.581e-4, -1.3678e-3, -7.75e-5, 4.158e-4),
        ),
        noise=0.0046,
    ),
)
"""Chinchilla's runs fitted anew (arXiv 2404.10102, table 1). The paper prints a standard error for each coefficient; an
interval of a loss needs their covariance too. It is from 4,000 bootstrap fits of the 240 runs that the paper published,
whose standard errors are the printed ones; the noise is the 68th percentile of those runs' log residuals."""

PUBLISHED = (
    KnownLaw(
        name="deepseek",
        source="arXiv 2401.02954, eq. 4",
        scale="flops_per_token",
        place=MODEL_OPT,
        measured=(1e17, 3e20),
        note="no interval is published",
    ),
    KnownLaw(
        name="chinchilla-1",
        source="arXiv 2203.15556, tables 2 and 3 (minima of training curves)",
        scale="params_total",
        place=Power(0.09916, 0.4981),  # through the nine rows of table 3, to 1.2 %; the exponent is printed as 0.50
        exponent_interval=(0.488, 0.502),
        level=80,
        measured=(6e18, 3e21),
    ),
    KnownLaw(
        name="chinchilla-2",
        source="arXiv 2203.15556, tables 2 and A3 (IsoFLOP profiles)",
        scale="params_total",
        place=Power(0.14488, 0.48994),  # through the nine rows of table A3, to 3.3 % (67B is printed for 69B)
        exponent_interval=(0.462, 0.534),
        level=80,
        measured=(6e18, 3e21),
    ),
    KnownLaw(
        name="chinchilla-3",
        source="arXiv 2203.15556, eq. 10 and table 2 (parametric fit), unrounded as quoted in arXiv 2404.10102",
        scale="params_total",
        surface=Surface(E=1.6934, A=406.4, B=410.7, alpha=0.3392, beta=0.2849),
        exponent_interval=(0.454, 0.455),
        level=80,
        measured=(6e18, 3e21),
        note="its interval is known to be far too narrow, and its coefficients wrong (arXiv 2404.10102)",
    ),
    KnownLaw(
        name="chinchilla-corrected",
        source="arXiv 2404.10102, table 1",
        scale="params_total",
        surface=CORRECTED,
        measured=(1.4e18, 1.3e22),
    ),
    KnownLaw(
        name="kaplan",
        source="arXiv 2001.08361, table 6",
        scale="params_non_embedding",
        # N = 1.3e9 C_min^0.73 with C_min in PF-days, and C = 2 C_min at the critical batch (eq. 5.5).
        place=Power(1.3e9 / (2 * 8.64e19) ** 0.73, 0.73),
        note="no interval is published; later work finds this exponent too large (arXiv 2203.15556, 2406.19146)",
    ),
    KnownLaw(
        name="llama-3",
        source="arXiv 2407.21783, fig. 3",
        scale="params_total",
        place=Power(1 / (6 * 0.299), 1 - 0.537),  # tokens are 0.299 C^0.537
        measured=(6e18, 1e22),
        note="no interval is published",
    ),
)
LAWS: Mapping[str, KnownLaw] = {law.name: law for law in PUBLISHED}
DEFAULT = "deepseek"
LOSS_LAW = LAWS["chinchilla-corrected"]
"""The surface that gives a loss where a law says only where the optimum lies."""


def scale_of(model: Decoder, scale: Scale, seq_len: int) -> float:
    """The `x` of a law on this scale: M at `seq_len`, or the count of parameters that the law means.

    Without modules for further tokens: no law knows what they are worth to the next one.
    """
    model = model if model.mtp is None else replace(model, mtp=None)
    return float(model.flops_per_token(seq_len) if scale == "flops_per_token" else getattr(model, scale))


def known_law(name: str) -> KnownLaw:
    """The law called `name`, or the one in the file `name`, which `nachim fit --json` wrote.

    Raises UserError with the nearest name when there is neither, and for a file that holds no law.
    """
    if name in LAWS:
        return LAWS[name]
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return _from_file(path)
    raise UserError(
        f"no law is called {name!r}{nearest(name, LAWS)} (or give the file that `nachim fit --json` printed)"
    )


def _from_file(path: Path) -> KnownLaw:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no law: it is not the JSON that `nachim fit --json` prints ({error})") from error
    try:
        theta = {name: float(value) for name, value in said["coefficients"].items()}
        scale = SCALES[said["scale"]]
        surface = Surface(**theta, spread=_spread(said))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no law: it is not what `nachim fit --json` prints (at {error})") from error
    positive = (surface.A, surface.B, surface.alpha, surface.beta, surface.k)
    if not all(value > 0 and math.isfinite(value) for value in positive) or not math.isfinite(surface.E):
        raise UserError(f"{path} is a law without an optimum: A, B, alpha, beta and k must all be above 0")
    note = "params are taken to be total ones" if scale == "params_total" else ""
    if surface.spread is None:
        note = f"{note}; the file has no spread, so no interval".removeprefix("; ")
    return KnownLaw(name=path.name, source=str(path), scale=scale, surface=surface, note=note)


def _spread(said: Mapping[str, Any]) -> Spread | None:
    """The spread in a file; None in one that an earlier version wrote. Raises what wrong values raise."""
    found = said.get("spread")
    if not found:
        return None
    covariance = tuple(tuple(float(value) for value in row) for row in found["covariance"])
    if any(len(row) != len(covariance) for row in covariance) or len(covariance) not in (5, 6):
        raise ValueError("spread")
    noise, factor = float(said["noise"]) / 100, float(said["conformal_factor"])
    return Spread(float(found["x"]), float(found["tokens"]), covariance, noise, factor)
