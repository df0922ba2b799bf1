"""A run's folder as one value: whatever is there is read, whatever is not is named."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nachim.law.forms import Array
from nachim.spec import Machine, Run, UserError
from nachim.train import metrics, samples
from nachim.train.heartbeat import JOURNAL, Pulse, pulse
from nachim.train.manifest import METRICS, RESULT, read_result

ENDLESS = 2**62


@dataclass(frozen=True)
class Heat:
    """What was sampled of one quantity: `values` [names, steps], nan where there is none."""

    names: tuple[str, ...]
    steps: Array
    values: Array


@dataclass
class RunRecord:
    """What a run's folder holds. `rows` are the columns of its metrics, nan where a step has no value; `heats` what
    was sampled, by quantity; `journal` what befell it, as (time, sentence); `gaps` what cannot be shown, and why."""

    root: Path
    run: Run
    rows: dict[str, Array] = field(default_factory=dict)
    heats: dict[str, Heat] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    diverged: str | None = None
    pulse: Pulse | None = None
    journal: list[tuple[str, str]] = field(default_factory=list)
    machine: Machine | None = None
    operations: dict[str, Any] | None = None
    checkpoints: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps taken, as far as the metrics tell."""
        return int(self.rows["step"][-1]) if self.rows else 0

    def column(self, name: str) -> Array:
        """A column of the metrics, all nan where there is none."""
        return self.rows.get(name, np.full(len(self.rows["step"]), np.nan))

    @property
    def tokens_per_second(self) -> Array:
        """Tokens over seconds of every step."""
        return np.diff(self.column("tokens"), prepend=self._first) / self.column("seconds")

    @property
    def _first(self) -> float:
        return float(self.run.train.token_at(int(self.rows["step"][0]) - 1))

    @property
    def mfu(self) -> float | None:
        """The share of the machine's matmul peak that the median step reached; None where that was not measured."""
        train, machine = self.run.train, self.machine
        if machine is None or not self.rows or not hasattr(machine, f"{train.precision}_all"):
            return None
        threads = self.result["threads"] if self.result else 2
        work = self.run.flops_per_token + self.run.model.head_flops_per_token
        return float(np.nanmedian(self.tokens_per_second)) * work / machine.peak(train.precision, threads)


def is_run(root: Path) -> bool:
    """Whether `root` is the folder of a single run."""
    return (root / "run.json").is_file() and not (root / "study.json").exists()


def open_run(root: Path) -> RunRecord:
    """Everything `root` holds. Raises UserError when its run.json cannot be read; never for what else is missing."""
    record = RunRecord(root, Run.load(root / "run.json"))
    try:
        record.rows = _columns(metrics.read(root / METRICS, ENDLESS))
    except UserError as error:
        record.gaps.append(f"{error}.")
    try:
        record.heats = _heats(samples.read(root / samples.STATISTICS))
    except UserError as error:
        record.gaps.append(f"{error}.")
    if (root / RESULT).exists():
        try:
            record.result = read_result(root / RESULT)
        except UserError as error:
            record.gaps.append(f"{error}.")
    record.diverged = (_json(root / "diverged.json") or {}).get("why")
    record.operations = _json(root / "profile" / "operations.json")
    record.pulse = pulse(root)
    record.journal = _journal(root / JOURNAL)
    with contextlib.suppress(UserError):  # then no utilisation is shown
        record.machine = Machine.load(root / "machine.json")
    record.checkpoints = sorted(path.name for path in (root / "checkpoint").glob("step-*"))
    if not record.rows:
        record.gaps.append("No step was saved yet: metrics are written with every checkpoint.")
    if not record.heats:
        record.gaps.append("Nothing was sampled inside the model: train without `--statistics 0`.")
    return record


def _columns(table: Any) -> dict[str, Array]:
    if not table.num_rows:
        return {}
    return {name: np.asarray(table[name].to_numpy(), float) for name in table.column_names}


def _heats(table: Any) -> dict[str, Heat]:
    found = {}
    quantities = np.array(table["quantity"].to_pylist(), object)
    for quantity in samples.QUANTITIES:
        here = quantities == quantity
        if not here.any():
            continue
        names = [name for name, kept in zip(table["name"].to_pylist(), here, strict=True) if kept]
        order = {name: place for place, name in enumerate(dict.fromkeys(names))}
        steps, column = np.unique(table["step"].to_numpy()[here], return_inverse=True)
        values = np.full((len(order), len(steps)), np.nan)
        values[[order[name] for name in names], column] = table["value"].to_numpy()[here]
        found[quantity] = Heat(tuple(order), steps.astype(float), values)
    return found


def _journal(path: Path) -> list[tuple[str, str]]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            found.append((str(entry["time"]), str(entry["said"])))
        except (ValueError, KeyError, TypeError):
            continue  # a kill may have cut a line
    return found


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
