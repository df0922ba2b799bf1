"""A study's folder as one value: whatever is there is read, whatever is not is named with the reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nachim.app.fit import summarise
from nachim.law import IsoFlop, Observations, Study, isoflop, read, study
from nachim.law.early import late
from nachim.law.forms import Array
from nachim.spec import Machine, Part, Run, UserError

SIGNS = ("study.json", "plan.json", "ladder", "ladder.json", "observations.csv", "forecast.json")
"""A folder with none of these holds no study."""
NEEDED = {
    "forecast.json": ("bpb", "low", "high", "flops"),
    "verdict.json": ("measured", "error_percent", "inside"),
    "result.json": ("validation", "tokens_per_second", "flops_per_second", "head_flops_per_second", "threads"),
}
"""What a page cannot do without; a file that lacks one of these is not read."""


@dataclass(frozen=True)
class Rung:
    """A run's folder: its spec, and its result where it has finished."""

    folder: Path
    run: Run
    result: dict[str, Any] | None
    diverged: str | None

    @property
    def shape(self) -> str:
        """The name of its shape, as in the table of observations: layers x width."""
        return f"{self.run.model.n_layers}x{self.run.model.d_model}"

    @property
    def bpb(self) -> float | None:
        """Validation bits per byte, once finished."""
        found = self.result["validation"].get("bpb") if self.result else None
        return None if found is None else float(found)

    @cached_property
    def metrics(self) -> dict[str, Array]:
        """Columns of the metrics, nan where a step has no value; empty when nothing was written yet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self.folder / "metrics.parquet")
        except (OSError, pa.ArrowInvalid):
            return {}
        return {name: np.asarray(table[name].to_numpy(), float) for name in table.column_names}

    @property
    def done(self) -> float:
        """The share of its steps that was taken, as far as its metrics tell."""
        steps = self.metrics.get("step", np.empty(0))
        return float(steps[-1]) / self.run.train.steps if len(steps) else 0.0


@dataclass
class Record:
    """What a study's folder holds. `files` are its JSON files by name; `gaps` says what is missing and why.

    `repeats` is the run noise measured by repeated seeds, in log loss; `second` the IsoFLOP reading.
    """

    root: Path
    files: dict[str, Any] = field(default_factory=dict)
    machine: Machine | None = None
    sweep: list[Rung] = field(default_factory=list)
    ladder: list[Rung] = field(default_factory=list)
    target: Rung | None = None
    obs: Observations | None = None
    reading: Study | None = None
    second: IsoFlop | None = None
    repeats: float | None = None
    gaps: list[str] = field(default_factory=list)

    @property
    def sealed(self) -> dict[str, Any] | None:
        """The sealed forecast, intact or not (see `checks`)."""
        return self.files.get("forecast")

    @property
    def verdict(self) -> dict[str, Any] | None:
        """The verdict on the sealed forecast, once there is one."""
        return self.files.get("verdict") if self.sealed else None

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The law in numbers, as `nachim fit` gives them; None where no law was fitted."""
        return summarise(self.reading, self.obs, None) if self.reading and self.obs else None

    @cached_property
    def sealed_run(self) -> Run | None:
        """The run the forecast is about; None where the seal names none that can be read."""
        try:
            return Run.from_json(self.sealed["run"]) if self.sealed else None
        except (UserError, KeyError):
            return None

    @cached_property
    def checks(self) -> dict[str, bool]:
        """What must hold between the files for the verdict to mean anything, and whether it does."""
        sealed, verdict = self.sealed, self.verdict
        if not sealed:
            return {}
        table = self.root / "observations.csv"
        sha = hashlib.sha256(table.read_bytes()).hexdigest() if table.is_file() else ""
        found = {
            "the forecast is as it was sealed": self._intact(),
            "the law was fitted to this table of observations": sha == sealed.get("observations_sha256"),
        }
        if self.target:
            same = self.target.run.fingerprint == sealed.get("run_fingerprint")
            found["the target run is the one the forecast is about"] = same
        if verdict:
            found["the verdict is on this forecast"] = verdict.get("sha256") == sealed.get("sha256")
        if verdict and self.target and self.target.bpb is not None:
            found["the verdict's measurement is the target run's"] = verdict.get("measured") == self.target.bpb
        return found

    def _intact(self) -> bool:
        from nachim.lab.forecast import open_seal

        try:
            open_seal(self.root / "forecast.json")
        except UserError:
            return False
        return True


def open_record(root: Path) -> Record:
    """Everything `root` holds. Raises UserError when it is no folder, or holds no study; never for what is missing."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: give the folder a study was written to")
    if not any((root / name).exists() for name in SIGNS):
        raise UserError(f"{root} holds no study: it has neither study.json nor a ladder; give a study's folder")
    record = Record(root)
    for path in sorted(root.glob("*.json")):
        found = _json(path, record.gaps)
        if found is not None:
            record.files[path.stem] = found
    record.machine = _part(Machine, root / "machine.json", record.gaps)
    record.sweep = _rungs(root / "sweep", record.gaps)
    record.ladder = _rungs(root / "ladder", record.gaps)
    record.target = _rung(root / "target", record.gaps)
    _read_law(record)
    _say_what_is_unfinished(record)
    return record


def _json(path: Path, gaps: list[str]) -> Any:
    """What `path` holds: an object, or a list where it is the commands; None, and a gap, where it is anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        gaps.append(f"{path.name} cannot be read: {error}.")
        return None
    lacking = [name for name in NEEDED.get(path.name, ()) if not isinstance(found, dict) or name not in found]
    if lacking or not isinstance(found, list if path.name == "commands.json" else dict):
        why = f"it lacks {lacking[0]!r}" if lacking else f"it holds a {type(found).__name__}"
        gaps.append(f"{path.name} is not what a study writes: {why}.")
        return None
    return found


def _part(kind: type[Part], path: Path, gaps: list[str]) -> Any:
    if not path.exists():
        return None
    try:
        return kind.load(path)
    except UserError as error:
        gaps.append(f"{error}.")
        return None


def _rungs(root: Path, gaps: list[str]) -> list[Rung]:
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [rung for folder in folders if (rung := _rung(folder, gaps))]
    return sorted(found, key=lambda r: (r.run.flops_per_token, r.run.train.tokens, r.run.train.seed))


def _rung(folder: Path, gaps: list[str]) -> Rung | None:
    run = _part(Run, folder / "run.json", gaps)
    if run is None:
        return None
    result, diverged = (
        _json(folder / name, gaps) if (folder / name).exists() else None for name in ("result.json", "diverged.json")
    )
    why = str(diverged.get("why", "no reason was written")) if diverged else None
    return Rung(folder, run, result, why)


def _read_law(record: Record) -> None:
    """The law as the study itself read it: same observations, same measured noise, same seed.

    Before every run of the ladder has ended, only those that have a result are read, and no law is fitted.
    """
    from nachim.lab.store import observe, run_noise

    table, seed = record.root / "observations.csv", record.files.get("study", {}).get("seed", 0)
    try:
        if table.exists():
            every = record.obs = read(table)
            record.repeats = run_noise(every)
            if record.sealed_run:
                record.obs = late(every, record.sealed_run.train.tokens)
            record.reading = study(record.obs, noise=record.repeats, seed=seed)
        elif ended := [rung.run for rung in record.ladder if rung.bpb is not None]:
            record.obs = observe(record.root / "ladder", ended)
    except UserError as error:
        record.gaps.append(f"No law could be fitted: {error}.")
    if not record.reading or not record.obs:
        return
    try:
        record.second = isoflop(every, record.reading.fit.scale, seed)
    except UserError as error:
        record.gaps.append(f"There is no IsoFLOP second opinion: {error}.")


def _say_what_is_unfinished(record: Record) -> None:
    files, gaps = record.files, record.gaps
    if not record.machine and "machine.json" not in "".join(gaps):
        gaps.append("The machine was not measured yet, so no utilisation (MFU) can be given.")
    if not record.sweep:
        gaps.append("The sweep of learning rate and batch has not begun.")
    elif "recipe" not in files:
        gaps.append("The sweep is unfinished: no recipe was chosen yet.")
    ended = sum(rung.result is not None for rung in record.ladder)
    planned = sum(len(chain.get("runs", ())) for chain in files.get("ladder", {}).get("chains", ()))
    if not (record.root / "observations.csv").exists():
        gaps.append(f"The ladder is unfinished: {ended} of {planned or 'its'} runs have a result.")
    for rung in [*record.sweep, *record.ladder, *([record.target] if record.target else [])]:
        if rung.diverged:
            gaps.append(f"The run {rung.folder.name} diverged and gives no observation: {rung.diverged}")
    if not record.sealed and "refused" not in files and record.reading:
        gaps.append("No forecast is sealed yet.")
    if record.sealed and "verdict" not in files:
        done = f"{100 * record.target.done:.0f} % of its steps are taken" if record.target else "it has not begun"
        gaps.append(f"The target run has not been judged yet: {done}.")
