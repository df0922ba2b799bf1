"""From compute to a task's accuracy in two steps: scale to task loss by a law, task loss to accuracy by a curve.

The task loss is that of the right answer (in bits per byte, or nats): it falls smoothly where accuracy is still at
chance (arXiv 2412.04403, arXiv 2407.21783 sec. 3.2.1). Both steps leave something open, and an accuracy's interval
holds the two. Where runs cannot tell, there is no forecast, but the reason and the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
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

Table = dict[str, list[object]]
"""Columns of cells as they stand in a file."""

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

    def predict_all(self, targets: Observations, seed: int = 0) -> list[TaskForecast]:
        """The forecast for each run of `targets`. Raises UserError when they lack what the law of task loss needs."""
        scale = self.runs.scales[0]
        if self.law is None or self.law.reading is None:
            return [self.predict(float(flops), None, None, seed) for flops in targets.flops]
        if scale not in targets.scales or _bare(targets):
            raise UserError(
                f"the law of its loss is one of {scale!r} and 'tokens', which the runs to forecast lack: name them"
            )
        rows = zip(targets.flops.tolist(), targets.x(scale).tolist(), targets.tokens.tolist(), strict=True)
        return [self.predict(*row, seed) for row in rows]

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


def read_tasks(path: Path | str) -> dict[str, Observations]:
    """The runs of each task in a CSV or parquet table: columns `task_loss`, `accuracy`, and `flops`, or `tokens` with
    `params` or `flops_per_token`; besides `chance`, `items`, `weight`, and the task's name in `group` or `task`.

    Rows of weight 0 are left out. Raises UserError, naming the file, for what is missing or not a number.
    """
    return _named(path, _tasks)


def read_targets(path: Path | str, known: Collection[str]) -> dict[str, Observations]:
    """The runs to forecast for each of the `known` tasks: a table as `read_tasks` takes it, but that needs neither loss
    nor accuracy. Rows without a task's name are runs of every task; runs of tasks that are not known are left out.

    Raises UserError as `read_tasks` does, and when there is no run of a known task.
    """
    return _named(path, lambda table: _targets(table, known))


def _named(path: Path | str, of_table: Callable[[Table], dict[str, Observations]]) -> dict[str, Observations]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a CSV or parquet table of runs with task_loss and accuracy")
    try:
        return of_table(dict(cells(path)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _targets(table: Table, known: Collection[str]) -> dict[str, Observations]:
    count = len(next(iter(table.values())))
    found = _tasks({"task_loss": [1.0] * count} | table, needed=())
    if not {"group", "task"} & table.keys():
        if "accuracy" in table and len(known) > 1:
            raise UserError(
                f"there are {len(known)} tasks, and no column 'task' says which of them this 'accuracy' is of"
            )
        return dict.fromkeys(known, *found.values())
    if not found.keys() & set(known):
        name = next(iter(found))
        raise UserError(
            f"none of its tasks is one of the runs learnt from: those have no {name!r}{nearest(name, known)}"
        )
    return {name: runs for name, runs in found.items() if name in known}


def _tasks(table: Table, needed: tuple[str, ...] = ("task_loss", "accuracy")) -> dict[str, Observations]:
    for name in needed:
        if name not in table:
            raise UserError(f"there is no column {name!r}{nearest(name, table)}")
    if "flops" not in table and not ("tokens" in table and {"params", "flops_per_token"} & table.keys()):
        raise UserError("there is neither a column 'flops' nor 'tokens' with 'params': how dear was each run?")
    count = len(next(iter(table.values())))
    names = np.array([str(name) for name in table.get("group") or table.get("task") or ["task"] * count])
    known = ("tokens", "params", "flops_per_token", "flops", "accuracy", "chance", "items", "weight")
    columns = {name: numbers(name, table[name]) for name in known if name in table}
    columns["loss"] = numbers("task_loss", table["task_loss"])
    _check(columns)
    if "tokens" not in columns or not {"params", "flops_per_token"} & columns.keys():
        columns |= {"tokens": columns["flops"], "flops_per_token": np.ones(count)}
        columns.pop("params", None)
    whole = of(columns)
    return {str(name): whole.subset((names == name) & (whole.weight > 0)) for name in dict.fromkeys(names.tolist())}


def _check(columns: Mapping[str, Array]) -> None:
    for name, label in (("loss", "task_loss"), ("items", "items"), ("accuracy", "accuracy"), ("chance", "chance")):
        if name not in columns:
            continue
        share = name in ("accuracy", "chance")
        found = columns[name]
        right = (found >= 0) & (found <= 1) if share else np.isfinite(found) & (found > 0)
        if not right.all():
            row = int(np.argmin(right))
            what = "no share from 0 to 1" if share else "not a positive number"
            raise UserError(f"row {row + 1}, column {label!r}: {found[row]:g} is {what}")


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


def _bare(runs: Observations) -> bool:
    """Whether the table of `runs` had compute alone."""
    return runs.flops_per_token is not None and bool((runs.flops_per_token == 1).all())


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
        return f"{n} run{'s' * (n != 1)}: at least {FEWEST} are needed to see a curve"
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
