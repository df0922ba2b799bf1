"""From compute to a task's accuracy in two steps: scale to task loss by a law, task loss to accuracy by a curve.

The task loss is that of the right answer (in bits per byte, or nats): it falls smoothly where accuracy is still at
chance (arXiv 2412.04403, arXiv 2407.21783 sec. 3.2.1). Both steps leave something open, and an accuracy's interval
holds the two. Where runs cannot tell, there is no forecast, but the reason and the noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from nachim.law.axis import FlopsPower
from nachim.law.curves import FEWEST, Choice, Scores, choose
from nachim.law.fit import fit
from nachim.law.forms import Array
from nachim.law.interval import bootstrap
from nachim.law.observe import Observations, cells, numbers, of
from nachim.law.study import Study, study
from nachim.spec.error import UserError, nearest

DRAWS = 4000
Q90 = 1.645
SURE = 3.0
"""Standard deviations by which accuracies must rise, and stand above chance."""
RANK = 0.5
"""Rank correlation of accuracy with falling loss, at least."""
CLEAR = 5.0
"""Task losses must span this many times their own noise."""
VAGUE = 0.4
"""A 90 % interval that spans more than this share of what lies between chance and 1 forecasts nothing."""


@dataclass(frozen=True)
class TaskForecast:
    """Forecast `loss` and `accuracy` of one run, each with its 90 % interval; `reason` why it is none, if so."""

    loss: float
    loss_low: float
    loss_high: float
    accuracy: float
    low: float
    high: float
    reason: str | None


@dataclass(frozen=True, eq=False)
class Task:
    """A task's two steps. `reason` says why its runs allow no forecast; then `choice` and `law` may be None.

    `binomial` is the standard deviation that the number of items gives an accuracy near the best run's, `rise` how
    much the accuracy rises over all runs; both as shares of 1.
    """

    name: str
    runs: Observations
    scores: Scores
    law: LossLaw | None
    choice: Choice | None
    binomial: float
    rise: float
    reason: str | None

    def predict(self, flops: float, x: float | None, tokens: float | None, seed: int = 0) -> TaskForecast:
        """The forecast for a run of compute `flops`, scale `x` and `tokens` (None where the table has compute alone).

        Raises UserError when the task allows none.
        """
        if self.reason or self.law is None or self.choice is None:
            raise UserError(f"no forecast of {self.name}: {self.reason}")
        rng = np.random.default_rng(seed)
        losses = self.law.draws(flops, x, tokens, DRAWS, rng)
        drawn = self.choice.draws(losses, rng)
        centre = float(self.choice.value(np.array([np.median(losses)]))[0])
        ends = np.quantile(drawn, [0.05, 0.95])
        low, high = np.clip(centre + self.choice.factor * (ends - centre), 0.0, 1.0)
        low, high = min(low, centre), max(high, centre)
        loss = np.quantile(losses, [0.5, 0.05, 0.95])
        return TaskForecast(*map(float, loss), centre, float(low), float(high), self._vague(low, high))

    def _vague(self, low: float, high: float) -> str | None:
        if high - low <= VAGUE * (1 - self.scores.chance):
            return None
        return (
            f"its 90 % interval, {100 * low:.0f} to {100 * high:.0f} %, says next to nothing: runs nearer to the "
            "target are needed"
        )


@dataclass(frozen=True, eq=False)
class LossLaw:
    """The first step: a study over scale and tokens, or a power law of compute where runs cannot carry one."""

    name: str
    reading: Study | None
    power: tuple[FlopsPower, Array, float, float, float] | None
    noise: float

    def draws(self, flops: float, x: float | None, tokens: float | None, count: int, rng: np.random.Generator) -> Array:
        """Task losses that a run may come out with, (count,)."""
        if self.reading is not None and x is not None and tokens is not None:
            point, low, high = (float(end) for end in self.reading.predict(x, tokens))
            z = rng.standard_normal(count)
            reach = np.where(z < 0, np.log(point / low), np.log(high / point)) / Q90
            return np.asarray(point * np.exp(reach * z))
        if self.power is None:
            raise UserError("the target has no scale and tokens, which the runs' law of task loss is made of")
        law, refits, unit, loss, noise = self.power
        logs = law.value(refits, np.array([np.log(flops / unit)]))[:, 0]
        return np.asarray(loss * np.exp(rng.choice(logs, count) + noise * rng.standard_normal(count)))


def read_tasks(path: Path | str, *, targets: bool = False) -> dict[str, Observations]:
    """The runs of each task in a CSV or parquet table: columns `task_loss`, `accuracy`, and `flops`, or `tokens` with
    `params` or `flops_per_token`; besides `chance`, `items`, `weight`, and the task's name in `group` or `task`.

    Rows of weight 0 are left out. Runs that are `targets` of a forecast need neither loss nor accuracy. Raises
    UserError, naming the file, for what is missing or not a number.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a CSV or parquet table of runs with task_loss and accuracy")
    try:
        return _tasks(dict(cells(path)), targets)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _tasks(table: dict[str, list[object]], targets: bool) -> dict[str, Observations]:
    for name in ("task_loss", "accuracy"):
        if name not in table and not targets:
            raise UserError(f"there is no column {name!r}{nearest(name, table)}")
    if "flops" not in table and not ("tokens" in table and {"params", "flops_per_token"} & table.keys()):
        raise UserError("there is neither a column 'flops' nor 'tokens' with 'params': how dear was each run?")
    count = len(next(iter(table.values())))
    names = np.array([str(name) for name in table.get("group") or table.get("task") or ["task"] * count])
    known = ("tokens", "params", "flops_per_token", "flops", "accuracy", "chance", "items", "weight")
    columns = {name: numbers(name, table[name]) for name in known if name in table}
    columns["loss"] = numbers("task_loss", table["task_loss"]) if "task_loss" in table else np.ones(count)
    if "tokens" not in columns or not {"params", "flops_per_token"} & columns.keys():
        columns |= {"tokens": columns["flops"], "flops_per_token": np.ones(count)}
        columns.pop("params", None)
    for name in {"accuracy", "chance"} & columns.keys():
        share = np.asarray(columns[name], float)
        if (outside := ~((share >= 0) & (share <= 1))).any():
            row = int(np.argmax(outside))
            raise UserError(f"row {row + 1}, column {name!r}: {share[row]:g} is no share from 0 to 1")
    whole = of(columns)
    return {str(name): whole.subset((names == name) & (whole.weight > 0)) for name in dict.fromkeys(names.tolist())}


def task_of(name: str, runs: Observations, seed: int = 0) -> Task:
    """Fit both steps to the runs of one task, or say why they allow no forecast (`Task.reason`)."""
    scores = scores_of(runs)
    best = np.argsort(scores.loss)[: max(2, len(scores.loss) // 3)]
    top = float(scores.accuracy[best].mean())
    binomial = float(scores.binomial(np.array([top]))[0])
    early = _unfit(scores, top, binomial)
    if early:
        return Task(name, runs, scores, None, None, binomial, float(np.ptp(scores.accuracy)), early)
    choice, law = choose(scores), loss_law(runs, seed)
    ends = choice.value(np.array([scores.loss.max(), scores.loss.min()]))
    rise = float(ends[1] - ends[0])
    return Task(name, runs, scores, law, choice, binomial, rise, _unclear(scores, choice, law, rise))


def scores_of(runs: Observations) -> Scores:
    """Loss and accuracy of a task's runs. Raises UserError when there is no accuracy, or chance or items vary."""
    if "accuracy" not in runs.extra:
        raise UserError("there is no column 'accuracy': a curve from task loss to accuracy needs it")
    chance, items = runs.extra.get("chance", np.zeros(1)), runs.extra.get("items")
    if np.ptp(chance) > 1e-6:
        raise UserError(f"'chance' varies from {chance.min():g} to {chance.max():g} within a task: it is one number")
    return Scores(runs.loss, runs.extra["accuracy"], float(chance[0]), None if items is None else float(items.min()))


def loss_law(runs: Observations, seed: int = 0) -> LossLaw:
    """The law of task loss: over scale and tokens where the runs determine one, else over compute alone."""
    if np.ptp(np.log(runs.flops_per_token if runs.params is None else runs.params)) > 0.01:  # type: ignore[arg-type]
        try:
            reading = study(runs, seed=seed)
            return LossLaw(reading.fit.law.name, reading, None, reading.noise)
        except UserError:
            pass
    law = FlopsPower()
    one = fit(runs, law, runs.scales[0])
    rng = np.random.default_rng(seed)
    refits = bootstrap(law, one.sample, one.point[None], one.sample.weight[None], 200, rng)[0]
    noise = float(np.sqrt((one.residuals**2).sum() / max(1, len(runs) - law.size)))
    units = one.sample.units
    return LossLaw(law.name, None, (law, refits, units.of("flops"), units.loss, noise), noise)


def _unfit(scores: Scores, top: float, binomial: float) -> str | None:
    """Why no curve is even fitted."""
    n = len(scores.loss)
    if n < FEWEST:
        return f"{n} runs: at least {FEWEST} are needed to see a curve"
    rank = -float(stats.spearmanr(scores.loss, scores.accuracy).statistic) if np.ptp(scores.accuracy) > 0 else 0.0
    spread = float(scores.accuracy.std(ddof=1))
    noise = max(binomial, spread / np.sqrt(n) if not scores.items else 0.0)
    above = top - scores.chance
    if above < SURE * noise and rank < 0.9:
        return (
            f"accuracy is at chance: {100 * top:.1f} % in the best third of the runs against "
            f"{100 * scores.chance:.1f} %, with noise of {100 * noise:.1f} points, so that nothing tells where the "
            "curve rises; better runs are needed"
        )
    if rank < RANK or not np.isfinite(rank):
        return (
            f"accuracy does not rise as the task loss falls (rank correlation {rank:.2f}, noise {100 * noise:.1f} "
            "points): this loss does not foretell it"
        )
    return None


def _unclear(scores: Scores, choice: Choice, law: LossLaw, rise: float) -> str | None:
    """Why no forecast is made although curves were fitted."""
    fitted = choice.best
    noise = float(fitted.noise(scores.loss).max())
    if rise < SURE * noise:
        more = "more items a task" if fitted.scatter < noise / 2 else "a loss that foretells it"
        return (
            f"accuracy rises by {100 * rise:.1f} points over all runs, against noise of {100 * noise:.1f} points a "
            f"run: {more}, or runs farther apart are needed"
        )
    reach = float(np.ptp(np.log(scores.loss)))
    if reach < CLEAR * law.noise:
        return (
            f"the task losses span {100 * reach:.1f} %, and scatter around their law by {100 * law.noise:.1f} %: runs "
            "farther apart in compute are needed"
        )
    return None


def tasks(runs: Iterable[tuple[str, Observations]], seed: int = 0) -> dict[str, Task]:
    """Both steps of every task by name. Raises UserError naming the task whose table is wrong."""
    found = {}
    for name, table in runs:
        try:
            found[name] = task_of(name, table, seed)
        except UserError as error:
            raise UserError(f"task {name!r}: {error}") from None
    return found
