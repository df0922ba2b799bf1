"""How well the laws would have forecast: fit the cheap runs of a table, predict its dearest ones, count the misses.

One fixed rule for every table, so that nothing is picked by hand:

- Runs that repeat their data more than EPOCHS times (`unique_tokens`) are left out: the laws over scale and tokens do
  not read repetition, which costs next to nothing up to there (arXiv 2305.16264, section 6).
- Of runs at one scale and token count that differ in `lr` or `batch_tokens`, the best is kept: a sweep's other runs say
  what a poor setting costs, not what the scale is worth.
- Groups are settings, each read alone, when each can determine a law alone and fitting them together leaves residuals
  APART times as large as fitting them apart; else the table is one set.
- The dearest runs are held out, by whole budgets from the top until HELD_OUT of the runs are. A cut-off fits the
  cheapest share of the rest, by whole budgets, and predicts the same held-out runs: a smaller share reaches farther.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nachim.law.fit import fit, sample_of, shortfall
from nachim.law.laws import ALL, LAWS
from nachim.law.observe import Observations, read
from nachim.law.select import budgets
from nachim.law.study import study
from nachim.spec.error import UserError

EPOCHS = 4.0
APART = 1.5
HELD_OUT = 0.1
CUTOFFS = (1.0, 0.7, 0.5)
"""Shares of the runs that are not held out: each is fitted, the cheapest first."""
TABLES = (".csv", ".parquet")
EVERY = ("auto", *(name for name, law in ALL.items() if law.inputs == ("x", "tokens")))
"""What is tried: the choice among laws, and every law over scale and tokens."""
BETTER = 1.1
"""A forecast worse than the better of Chinchilla's and the coupled law alone by this factor counts as a poor choice."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Runs that one law should describe, and `notes` on what was left out of the table and why."""

    name: str
    runs: Observations
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One law's forecasts of the held-out runs of one set from `fitted` cheaper ones.

    `law` is what was asked for ("auto" chooses), `chosen` the one with the largest share in the forecasts; `reach` the
    dearest compute held out over the dearest fitted. `mape`, `coverage90` and `median_width` are in percent; `alone` is
    the error of one plain fit, of the law whose coefficients are reported.
    `seconds` are of the processor. Where no forecast was made, `reason` says why and the numbers are NaN.
    """

    data: str
    law: str
    chosen: str
    cutoff: float
    fitted: int
    held_out: int
    reach: float
    mape: float
    alone: float
    coverage90: float
    median_width: float
    seconds: float
    reason: str | None = None


def data_sets(folder: Path | str) -> tuple[list[DataSet], list[str]]:
    """Every set under `folder` by the rule above, and a line for each table that could not be read.

    The tables are all files called observations*.csv or .parquet; where there are none, every CSV and parquet file.
    Raises UserError when the folder holds no table that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that holds tables of runs, such as SET/observations.csv")
    found = sorted(path for path in folder.rglob("*") if path.suffix in TABLES and path.is_file())
    named = [path for path in found if path.stem.startswith("observations")]
    sets: list[DataSet] = []
    skipped: list[str] = []
    for path in named or found:
        place = path.relative_to(folder)
        name = str(place.parent) if path.stem == "observations" else str(place.with_suffix(""))
        try:
            sets += settings(folder.resolve().name if name == "." else name, read(path))
        except UserError as error:
            skipped.append(str(error))
    if not sets:
        why = f" ({skipped[0]})" if skipped else ""
        raise UserError(f"{folder} holds no table of runs that can be read{why}: put one in SET/observations.csv")
    return sets, skipped


def settings(name: str, runs: Observations) -> list[DataSet]:
    """The sets that one table holds: tidied, and split by `group` where groups are settings."""
    runs, notes = _tidy(runs)
    labels = [] if runs.group is None else sorted(set(runs.group.tolist()))
    parts = {label: runs.subset(runs.group == label) for label in labels}
    alone = {label: part for label, part in parts.items() if _splits(part)}
    held = sum(map(len, alone.values()))
    if len(labels) < 2 or held < len(runs) / 2 or not _far_apart(list(alone.values())):
        return [DataSet(name, runs, tuple(notes))]
    for label in labels:
        if label not in alone:
            notes.append(f"group {label} left out: its {len(parts[label])} runs determine no law alone")
    return [DataSet(f"{name}/{label}", part, tuple(notes)) for label, part in alone.items()]


def split(runs: Observations, cutoff: float = 1.0) -> tuple[Mask, Mask]:
    """Masks (n,) of the runs that are fitted at `cutoff` and of those held out, by the rule above."""
    label = budgets(runs.flops)
    top = int(label.max())
    while top > 0 and (label >= top).sum() < max(2, HELD_OUT * len(runs)):
        top -= 1
    cheap = label < top
    last = top - 1
    while last > 0 and (label < last).sum() >= cutoff * cheap.sum():
        last -= 1
    return label <= min(last, top - 1), label >= top


def trial(data: DataSet, law: str, cutoff: float = 1.0, seed: int = 0) -> Trial:
    """Fit `law` ("auto" chooses) to the set's runs up to `cutoff` and predict those held out."""
    cheap, dear = split(data.runs, cutoff)
    nothing = Trial(data.name, law, "", cutoff, int(cheap.sum()), int(dear.sum()), *[float("nan")] * 6)
    if not cheap.any():
        return replace(nothing, reason="all runs have one compute budget: runs at 2 or more are needed")
    fitted, unseen = data.runs.subset(cheap), data.runs.subset(dear)
    started = time.process_time()
    try:
        reading = study(fitted, law=law, seed=seed)
        held = reading.held_out(unseen)
    except UserError as error:
        return replace(nothing, reason=str(error))
    seconds = time.process_time() - started
    alone = reading.fit.predict(unseen.x(reading.fit.scale), unseen.tokens)
    return replace(
        nothing,
        chosen=max(reading.lead, key=lambda each: reading.lead[each].sum()),
        reach=float(unseen.flops.max() / fitted.flops.max()),
        mape=held.mape,
        alone=float(100 * np.mean(np.abs(alone / unseen.loss - 1))),
        coverage90=held.coverage90,
        median_width=held.median_width,
        seconds=seconds,
    )


def backtest(
    sets: Sequence[DataSet],
    laws: Sequence[str] = EVERY,
    seed: int = 0,
    done: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """Every law at every cut-off of every set; `done` is called with each trial as it ends."""
    trials = []
    for data in sets:
        for cutoff in CUTOFFS:
            for law in laws:
                trials.append(trial(data, law, cutoff, seed))
                done(trials[-1])
    return trials


@dataclass(frozen=True)
class Pooled:
    """What the forecasts of one law at one cut-off say together, in percent but for seconds and counts.

    Over `sets`: the median and worst `mape`, the `held_out` runs, how many of them lie in their intervals, the least
    coverage of a set, the median width and seconds, and the number of `poor` choices (see BETTER)."""

    law: str
    cutoff: float
    sets: int
    held_out: int
    median: float
    worst: float
    coverage90: float
    least_coverage: float
    median_width: float
    seconds: float
    poor: int


def pooled(trials: Sequence[Trial], law: str, cutoff: float) -> Pooled | None:
    """The trials of `law` at `cutoff` together; None when it made no forecast."""
    best: dict[str, float] = {}
    for each in trials:
        if each.cutoff == cutoff and each.law in LAWS and not each.reason:
            best[each.data] = min(best.get(each.data, np.inf), each.alone)
    own = [each for each in trials if each.law == law and each.cutoff == cutoff and not each.reason]
    if not own:
        return None
    mape, covered, width, seconds, count = np.array(
        [(each.mape, each.coverage90, each.median_width, each.seconds, each.held_out) for each in own]
    ).T
    return Pooled(
        law=law,
        cutoff=cutoff,
        sets=len(own),
        held_out=int(count.sum()),
        median=float(np.median(mape)),
        worst=float(mape.max()),
        coverage90=float(covered @ count / count.sum()),
        least_coverage=float(covered.min()),
        median_width=float(np.median(width)),
        seconds=float(np.median(seconds)),
        poor=sum(each.mape > BETTER * best.get(each.data, np.inf) for each in own),
    )


def _tidy(runs: Observations) -> tuple[Observations, list[str]]:
    notes = []
    unique = runs.extra.get("unique_tokens")
    if unique is not None:
        often = runs.tokens > EPOCHS * 1.001 * np.where(np.isfinite(unique), unique, np.inf)
        if often.any() and not often.all():
            notes.append(f"{often.sum()} runs left out: they repeat their data more than {EPOCHS:g} times")
            runs = runs.subset(~often)
    best = _best_settings(runs)
    if len(best) < len(runs):
        notes.append(f"the best of each scale and token count kept, over lr and batch: {len(best)} of {len(runs)} runs")
        runs = runs.subset(best)
    return runs, notes


def _best_settings(runs: Observations) -> npt.NDArray[np.intp]:
    """Indices of the runs to keep: of those alike but for `lr` and `batch_tokens`, the one of least loss."""
    swept = {name: column for name in ("lr", "batch_tokens") if (column := getattr(runs, name)) is not None}
    kept: dict[tuple[object, ...], int] = {}
    every: list[int] = []
    alike: dict[tuple[object, ...], list[int]] = {}
    for run in range(len(runs)):
        same = (
            *(float(f"{runs.x(scale)[run]:.3g}") for scale in runs.scales),
            float(f"{runs.tokens[run]:.3g}"),
            None if runs.group is None else runs.group[run],
            *(column[run] for column in runs.extra.values() if np.isfinite(column[run])),
        )
        alike.setdefault(same, []).append(run)
    for same, members in alike.items():
        if any(np.ptp(np.log(column[members])) > 0.01 for column in swept.values()):
            kept[same] = min(members, key=lambda run: runs.loss[run])
        else:
            every += members
    return np.sort(np.array([*every, *kept.values()], dtype=np.intp))


def _splits(runs: Observations) -> bool:
    """Whether the cheap runs of the set determine a law, so that its dear ones can be held out."""
    cheap, dear = split(runs)
    sample = sample_of(runs, runs.scales[0])
    return bool(dear.any()) and shortfall(sample, LAWS["chinchilla"], cheap.astype(float)) is None


def _far_apart(parts: Sequence[Observations]) -> bool:
    from nachim.law.observe import concat

    law = LAWS["chinchilla"]
    apart = np.concatenate([fit(part, law, part.scales[0]).residuals for part in parts])
    together = fit(concat(parts), law, parts[0].scales[0]).residuals
    return bool(np.median(np.abs(together)) > APART * np.median(np.abs(apart)))
