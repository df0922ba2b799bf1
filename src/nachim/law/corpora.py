"""Data quality moves the law: several corpora under one law, what they share, and how the best allocation shifts.

Three fits are nested: every corpus with its own coefficients; with exponents that all share; with the loss floor E
shared as well. Each step costs the fit something. Whether it costs more than chance would is found by refitting runs
drawn from the narrower fit, each corpus with noise of its own: an F test knows one noise alone, and calls corpora whose
noises differ fivefold different in every fourth case at p = 0.05 (measured).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import numpy as np

from nachim.law.fit import NARROWING, sample_of, shortfall, solve_many
from nachim.law.forms import Array, Expansion, Fittable, Law, Sample, Scale
from nachim.law.interval import quantiles
from nachim.law.laws import LAWS, law_named
from nachim.law.observe import Observations
from nachim.law.solve import minimise
from nachim.law.study import study
from nachim.spec.error import UserError

EXPONENTS = ("alpha", "beta", "k")
MOST = 6
"""More corpora than this make one fit of too many coefficients to be of use: the test asks about two or three."""
DRAWS = 400
STEPS = 40
CHOICE_DRAWS = 40

Model = Literal["own", "exponents", "floor"]
SHARED: dict[Model, tuple[str, ...]] = {"own": (), "exponents": EXPONENTS, "floor": (*EXPONENTS, "E")}
"""What all corpora share in each of the nested fits, the widest first."""


@dataclass(frozen=True, eq=False)
class Joint(Fittable):
    """One law for several corpora: the coefficients called `shared` are common, the rest are each corpus's own.

    A law to `minimise`: its point holds the shared coefficients first, then each corpus's. `label` (n,) numbers the
    corpus of each run; `value` and `expand` want the inputs of all n runs.
    """

    base: Law
    label: Array
    shared: tuple[str, ...]

    @cached_property
    def corpora(self) -> int:
        """How many there are."""
        return int(self.label.max()) + 1

    @cached_property
    def places(self) -> Array:
        """Where each corpus's coefficients stand in the joint point, (corpora, base.size)."""
        names = self.base.coefficient_names
        common = [name for name in names if name in self.shared]
        own = [name for name in names if name not in self.shared]
        rows = [
            [common.index(n) if n in common else len(common) + number * len(own) + own.index(n) for n in names]
            for number in range(self.corpora)
        ]
        return np.array(rows, dtype=np.intp)

    @cached_property
    def size(self) -> int:
        """Number of coefficients."""
        return int(self.places.max()) + 1

    @cached_property
    def low(self) -> Array:
        """Lower bounds, (size,)."""
        return self._spread(self.base.low)

    @cached_property
    def high(self) -> Array:
        """Upper bounds, (size,)."""
        return self._spread(self.base.high)

    def _spread(self, one: Array) -> Array:
        whole = np.empty(self.size)
        whole[self.places] = one
        return whole

    def joined(self, points: Array) -> Array:
        """Joint points (..., size) from one point a corpus, (..., corpora, base.size); what is shared is their mean."""
        total, count = np.zeros((*points.shape[:-2], self.size)), np.zeros(self.size)
        for number, place in enumerate(self.places):
            total[..., place] += points[..., number, :]
            count[place] += 1
        return total / count

    def value(self, z: Array, *logs: Array) -> Array:
        """Log of the normalised loss, (..., n), at joint points (..., size)."""
        found = np.empty((*z.shape[:-1], len(self.label)))
        for rows, place in self._corpora():
            found[..., rows] = self.base.value(z[..., place], *(column[rows] for column in logs))
        return found

    def expand(self, z: Array, *logs: Array) -> Expansion:
        """As `Law.expand`: value, slope and curvature, in joint coordinates."""
        value = np.empty((*z.shape[:-1], len(self.label)))
        slope = np.zeros((*z.shape[:-1], self.size, len(self.label)))
        bends: list[tuple[Array, Array, Callable[[Array], Array] | None]] = []
        for rows, place in self._corpora():
            here, part, bend = self.base.expand(z[..., place], *(column[rows] for column in logs))
            value[..., rows] = here
            slope[..., place[:, None], rows] = part
            bends.append((rows, place, bend))

        def curvature(c: Array) -> Array:
            whole = np.zeros((*c.shape[:-1], self.size, self.size))
            for rows, place, bend in bends:
                if bend is not None:
                    whole[..., place[:, None], place] += bend(c[..., rows])
            return whole

        return value, slope, curvature if all(bend for _, _, bend in bends) else None

    def _corpora(self) -> list[tuple[Array, Array]]:
        return [(np.flatnonzero(self.label == number), place) for number, place in enumerate(self.places)]


@dataclass(frozen=True)
class Test:
    """Whether sharing costs more than chance: `p` is the share of `draws` refits of runs drawn from the narrower fit
    that cost as much. `statistic` is the rise of the objective over the wider fit's own, by `freedom` coefficients.

    A small p says that the corpora differ; a large one only that these runs do not show it.
    """

    statistic: float
    p: float
    freedom: int
    draws: int


@dataclass(frozen=True)
class Shift:
    """A corpus's best scale `x` and `tokens` at compute `flops`, and `ratio`, its x over the first corpus's; each with
    its 90 % interval."""

    name: str
    flops: float
    x: float
    x_interval90: tuple[float, float]
    tokens: float
    tokens_interval90: tuple[float, float]
    ratio: float
    ratio_interval90: tuple[float, float]

    @property
    def tokens_per_x(self) -> float:
        """Tokens per unit of scale: per parameter where x is params."""
        return self.tokens / self.x

    @property
    def tokens_per_x_interval90(self) -> tuple[float, float]:
        """Its 90 % interval. The budget ties tokens to x, so their ends go together."""
        return self.tokens_interval90[0] / self.x_interval90[1], self.tokens_interval90[1] / self.x_interval90[0]


@dataclass(frozen=True, eq=False)
class Corpora:
    """What a table says of its corpora, called `names`, under one `law`.

    `points` (corpora, size) are each corpus's coefficients in the law's coordinates, for each nested fit; `redrawn`
    (draws, corpora, size) its residual bootstrap. `exponents` tests whether exponents differ; `floor`, whether E
    does, given that exponents are shared: meaningful only where all losses are of one validation text.
    """

    names: tuple[str, ...]
    runs: tuple[int, ...]
    law: Law
    scale: Scale
    sample: Sample
    points: Mapping[Model, Array]
    redrawn: Mapping[Model, Array]
    exponents: Test
    floor: Test

    def coefficients(self, model: Model) -> list[dict[str, float]]:
        """Each corpus's coefficients in original units."""
        theta = self.law.coefficients(self.points[model], self.sample.units)
        return [{name: float(value[number]) for name, value in theta.items()} for number in range(len(self.names))]

    def intervals(self, model: Model) -> list[dict[str, tuple[float, float]]]:
        """The 90 % interval of each coefficient of each corpus, in original units."""
        theta = self.law.coefficients(self.redrawn[model], self.sample.units)
        return [
            {name: quantiles(value[:, number]) for name, value in theta.items()} for number in range(len(self.names))
        ]

    def model_exponents(self, model: Model, flops: float) -> list[tuple[float, tuple[float, float]]]:
        """How each corpus's best scale grows with compute near `flops`, with its 90 % interval."""
        own = self._over(self.points[model], lambda theta: self.law.exponents(theta, flops, self.scale)[0])
        drawn = self._over(self.redrawn[model], lambda theta: self.law.exponents(theta, flops, self.scale)[0])
        return [(float(one), quantiles(many)) for one, many in zip(own, drawn.T, strict=True)]

    def shifts(self, model: Model, flops: float) -> list[Shift]:
        """Where each corpus's optimum lies at compute `flops`. Raises UserError when that is not positive."""
        if not (np.isfinite(flops) and flops > 0):
            raise UserError(f"flops must be a positive number, not {flops}")
        own = self._over(self.points[model], lambda theta: self.law.allocation(theta, flops, self.scale)[0])
        drawn = self._over(self.redrawn[model], lambda theta: self.law.allocation(theta, flops, self.scale)[0])
        product = float(np.multiply(*(np.ravel(part)[0] for part in self._first(flops))))
        found = []
        for number, name in enumerate(self.names):
            low, high = quantiles(drawn[:, number])
            found.append(
                Shift(
                    name=name,
                    flops=flops,
                    x=float(own[number]),
                    x_interval90=(low, high),
                    tokens=product / float(own[number]),
                    tokens_interval90=(product / high, product / low),
                    ratio=float(own[number] / own[0]),
                    ratio_interval90=quantiles(drawn[:, number] / drawn[:, 0]),
                )
            )
        return found

    def _first(self, flops: float) -> tuple[Array, Array]:
        theta = self.law.coefficients(self.points["own"][0], self.sample.units)
        return self.law.allocation(theta, flops, self.scale)

    def _over(self, points: Array, ask: Callable[[dict[str, Array]], Array]) -> Array:
        return np.asarray(ask(self.law.coefficients(points, self.sample.units)))


def corpora(
    obs: Observations,
    law: str = "auto",
    scale: Scale | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Corpora:
    """Fit the corpora that `group` names jointly, and test what they share.

    "auto" takes the law of least rollout error over all corpora (geometric mean). Losses of different corpora need
    not be of one text: exponents do not depend on the unit of loss, nor on what is validated, as long as a corpus
    keeps to one. Raises UserError when there are no corpora, or one cannot determine the law.
    """
    names = _names(obs)
    obs = obs.subset(obs.weight > 0)
    scale = scale or obs.scales[0]
    parts = [obs.subset(obs.group == name) for name in names]
    base = _chosen(law, names, parts, scale, seed)
    sample = sample_of(obs, scale, base)
    label = np.array([names.index(name) for name in obs.group.tolist()])  # type: ignore[union-attr]
    for number, name in enumerate(names):
        if reason := shortfall(sample, base, np.where(label == number, sample.weight, 0.0)):
            raise UserError(f"{name}: {reason}")
    fits = {model: Joint(base, label, shared) for model, shared in SHARED.items()}
    solved = _nested(fits, sample)
    rng = np.random.default_rng(seed)
    redrawn: dict[Model, Array] = {}
    tests = {}
    for wide, narrow in (("own", "exponents"), ("exponents", "floor")):
        pair = cast(tuple[Model, Model], (wide, narrow))
        tests[narrow], redrawn[pair[1]] = _compare(fits, solved, pair, sample, draws, rng)
    targets = _redraw(fits["own"], sample, solved["own"][0], draws, rng)
    redrawn["own"], _ = _refit(fits["own"], sample, targets, np.tile(solved["own"][0], (draws, 1)))
    return Corpora(
        names=names,
        runs=tuple(len(part) for part in parts),
        law=base,
        scale=scale,
        sample=sample,
        points={model: solved[model][0][joint.places] for model, joint in fits.items()},
        redrawn={model: redrawn[model][:, joint.places] for model, joint in fits.items()},
        exponents=tests["exponents"],
        floor=tests["floor"],
    )


def _names(obs: Observations) -> tuple[str, ...]:
    if obs.group is None:
        raise UserError("there is no column 'group': it names the corpus of each run")
    if (blank := np.flatnonzero((np.char.strip(obs.group) == "") & (obs.weight > 0))).size:
        raise UserError(f"row {blank[0] + 1} has nothing in column 'group': it names the corpus of each run")
    names = tuple(dict.fromkeys(obs.group[obs.weight > 0].tolist()))
    if len(names) < 2:
        raise UserError(f"column 'group' holds one corpus, {names[0]!r}: comparing needs at least two")
    if len(names) > MOST:
        raise UserError(f"column 'group' holds {len(names)} corpora: keep the rows of those to compare, {MOST} at most")
    return names


def _chosen(law: str, names: Sequence[str], parts: Sequence[Observations], scale: Scale, seed: int) -> Law:
    if law != "auto":
        base = law_named(law)
        if not {"E", "alpha", "beta"} <= set(base.coefficient_names) or base.inputs != ("x", "tokens"):
            raise UserError(f"the {law} law has no exponents that corpora could share: take {' or '.join(LAWS)}")
        return base
    score = dict.fromkeys(LAWS, 0.0)
    for name, part in zip(names, parts, strict=True):
        try:
            errors = study(part, scale=scale, seed=seed, draws=CHOICE_DRAWS).errors
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        for each in score:
            score[each] += np.log(errors[each] + 1e-9) if each in errors else (0.0 if not errors else np.inf)
    return LAWS[min(score, key=lambda each: (score[each], LAWS[each].size))]


def _nested(fits: Mapping[Model, Joint], sample: Sample) -> dict[Model, tuple[Array, float]]:
    """The best point (size,) and objective of each nested fit. A narrower fit starts from every corpus's exponents and
    from their mean; a wider one is never worse than the next narrower, from which it starts as well."""
    own = fits["own"]
    weights = np.stack([np.where(own.label == number, sample.weight, 0.0) for number in range(own.corpora)])
    apart, _, _ = solve_many(own.base, sample, weights)
    shared = [own.base.coefficient_names.index(n) for n in EXPONENTS if n in own.base.coefficient_names]
    tries = [apart]
    for number in range(own.corpora):
        alike = apart.copy()
        alike[:, shared] = apart[number, shared]
        tries.append(alike)
    found: dict[Model, tuple[Array, float]] = {}
    for model in reversed(list(fits)):
        joint = fits[model]
        starts = [joint.joined(one) for one in (tries if joint.shared else tries[:1])]
        starts += [joint.joined(point[fits[narrow].places]) for narrow, (point, _) in found.items()]
        points, costs = _solve(joint, sample, np.stack(starts))
        found[model] = points[costs.argmin()], float(costs.min())
    return found


def _solve(joint: Joint, sample: Sample, starts: Array) -> tuple[Array, Array]:
    """From each start, by narrowing Huber losses, and directly: the better of the two."""
    spread, target = (np.tile(column, (len(starts), 1)) for column in (sample.weight, sample.log_loss))
    law, points = cast(Law, joint), starts
    for delta, steps in NARROWING:
        points, costs = minimise(law, sample.inputs, target, spread, points, delta=delta, steps=steps)
    direct, straight = minimise(law, sample.inputs, target, spread, starts, steps=STEPS)
    better = straight < costs
    return np.where(better[:, None], direct, points), np.where(better, straight, costs)


def _compare(
    fits: Mapping[Model, Joint],
    solved: Mapping[Model, tuple[Array, float]],
    pair: tuple[Model, Model],
    sample: Sample,
    draws: int,
    rng: np.random.Generator,
) -> tuple[Test, Array]:
    """The test of the narrower fit of `pair` against the wider, and the narrower fit's own refits (draws, size)."""
    wide, narrow = (fits[model] for model in pair)
    (_, wide_cost), (point, cost) = (solved[model] for model in pair)
    statistic = (cost - wide_cost) / max(wide_cost, 1e-300)
    targets = _redraw(narrow, sample, point, draws, rng)
    refits, costs = _refit(narrow, sample, targets, np.tile(point, (draws, 1)))
    _, wide_costs = _refit(wide, sample, targets, wide.joined(refits[:, narrow.places]))
    drawn = (costs - wide_costs) / np.maximum(wide_costs, 1e-300)
    test = Test(
        statistic=statistic,
        p=float((1 + (drawn >= statistic).sum()) / (1 + draws)),
        freedom=wide.size - narrow.size,
        draws=draws,
    )
    return test, refits


def _redraw(joint: Joint, sample: Sample, point: Array, draws: int, rng: np.random.Generator) -> Array:
    """Log losses (draws, n) of runs that follow the joint law at `point`, with its residuals redrawn within each
    corpus, inflated by their leverage and centred (as `interval.bootstrap` does)."""
    value, slope, _ = joint.expand(point, *sample.inputs)
    basis, _ = np.linalg.qr((slope * np.sqrt(sample.weight)).T)
    residual = (sample.log_loss - value) / np.sqrt(1 - np.minimum((basis**2).sum(axis=1), 0.9))
    targets = np.empty((draws, len(value)))
    for number in range(joint.corpora):
        rows = np.flatnonzero(joint.label == number)
        centred = residual[rows] - residual[rows].mean()
        targets[:, rows] = value[rows] + rng.choice(centred, size=(draws, len(rows)))
    return targets


def _refit(joint: Joint, sample: Sample, targets: Array, starts: Array) -> tuple[Array, Array]:
    spread = np.broadcast_to(sample.weight, targets.shape)
    return minimise(cast(Law, joint), sample.inputs, targets, spread, starts, steps=STEPS)
