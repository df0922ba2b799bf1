"""Reading runs back: from folders to a table of observations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nachim.lab.ladder import Ladder, name_of
from nachim.lab.work import result_of
from nachim.law.flag import find
from nachim.law.observe import Observations
from nachim.spec import Run, UserError


def finished(root: Path, runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any]]]:
    """The runs that have a result under `root`, with it. Raises UserError when a result is of another run."""
    found = []
    for run in runs:
        out = root / name_of(run)
        if not (out / "result.json").exists():
            continue
        result = result_of(out)
        if result["fingerprint"] != run.fingerprint:
            raise UserError(f"{out} holds the result of another run: remove that folder, or choose another")
        found.append((run, result))
    return found


def diverged(root: Path, ladder: Ladder) -> list[str]:
    """Names of the runs under `root` that their guard stopped."""
    return [name for run in ladder.runs if (root / (name := name_of(run)) / "diverged.json").exists()]


def doubts(root: Path, ladder: Ladder, observed: Observations) -> list[str]:
    """Sentences on rungs that a reader should look at: those under `root` that diverged and are not in `observed`, and
    its rows that `nachim.law.flag` finds diverged, under-tuned or off the others."""
    found = [f"observations.csv, {flag}" for flag in find(observed)]
    if lost := diverged(root, ladder):
        found.insert(0, f"diverged, and left out of the law: {', '.join(lost)}")
    return found


def observe(root: Path, runs: Sequence[Run]) -> Observations:
    """One observation a finished run; `loss` is its validation bpb, the only loss that compares across tokenizers.

    Raises UserError when none is finished.
    """
    rows = finished(root, runs)
    if not rows:
        raise UserError(f"no run under {root} is finished: run the ladder first")
    return table_of(rows)


def table_of(rows: Sequence[tuple[Run, dict[str, Any]]]) -> Observations:
    """One observation for each run and its result, at least one."""
    return Observations(
        tokens=np.array([float(run.train.tokens) for run, _ in rows]),
        loss=np.array([result["validation"]["bpb"] for _, result in rows]),
        params=np.array([float(run.model.params_non_embedding) for run, _ in rows]),
        flops_per_token=np.array([float(run.flops_per_token) for run, _ in rows]),
        flops=np.array([float(run.flops) for run, _ in rows]),
        lr=np.array([run.train.optimizer.lr for run, _ in rows]),
        batch_tokens=np.array([float(run.train.batch_tokens) for run, _ in rows]),
        seed=np.array([float(run.train.seed) for run, _ in rows]),
        group=np.array([f"{run.model.n_layers}x{run.model.d_model}" for run, _ in rows]),
    )


def run_noise(observed: Observations) -> float | None:
    """Standard deviation of log loss between runs that differ in their seed alone; None without such runs.

    Each group of n equal runs gives its squared deviations with n - 1 degrees of freedom; the pooled root is returned.
    """
    if observed.seed is None or observed.group is None:
        return None
    groups: dict[tuple[str, float], list[float]] = {}
    for group, tokens, loss in zip(observed.group, observed.tokens, observed.loss, strict=True):
        groups.setdefault((str(group), float(tokens)), []).append(float(np.log(loss)))
    repeated = [np.array(values) for values in groups.values() if len(values) > 1]
    if not repeated:
        return None
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in repeated)
    return float(np.sqrt(squares / sum(len(values) - 1 for values in repeated)))
