"""What workers do: one task is one shard of one stage. Stages travel as JSON, so that any process can take a task."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from nachim.data.ledger import Ledger, values_of
from nachim.data.shards import done, dropped_of, read_shard, write_lines, write_shard
from nachim.data.stage import Drop, Outcome, PerRow, Row, Stage, Summary, WholeSet
from nachim.spec.disk import replacing
from nachim.spec.error import UserError
from nachim.spec.part import Part

KEY = "_key"
Modules = list[tuple[str, str]]


@dataclass(frozen=True)
class Task:
    """Make `target` from the shard `source` with a `stage`, as JSON; `key` stands for all that decides the result."""

    stage: str
    source: Path
    target: Path
    key: str

    def known(self) -> bool:
        """Whether this is done already."""
        return done(self.target, self.key) is not None

    def carry_out(self) -> None:
        """Do it. Raises UserError for what a person can mend."""
        raise NotImplementedError

    def opened(self) -> Stage:
        """The stage itself."""
        return Stage.from_json(json.loads(self.stage))


@dataclass(frozen=True)
class RowByRow(Task):
    """A shard through a `PerRow` stage."""

    def carry_out(self) -> None:
        """Write what stays."""
        stage = self.opened()
        assert isinstance(stage, PerRow)
        _write(self, type(stage).__name__, stage.many)


@dataclass(frozen=True)
class Summarised(Task):
    """What a `WholeSet` stage keeps of a shard, as arrays."""

    def known(self) -> bool:
        """Whether the summary stands there."""
        try:
            with np.load(self.target) as arrays:
                return bool(arrays[KEY] == self.key)
        except (OSError, ValueError, KeyError, EOFError):
            return False

    def carry_out(self) -> None:
        """Write the summary."""
        stage = self.opened()
        assert isinstance(stage, WholeSet)
        with replacing(self.target) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{**stage.part(read_shard(self.source)), KEY: np.array(self.key)})

    def read(self) -> Summary:
        """The summary."""
        with np.load(self.target) as arrays:
            return {name: arrays[name] for name in arrays.files if name != KEY}


@dataclass(frozen=True)
class Decided(Task):
    """A shard through a `WholeSet` stage, by what it decided: JSON in the file `decision`."""

    decision: Path

    def carry_out(self) -> None:
        """Write what stays."""
        stage, decision = self.opened(), json.loads(self.decision.read_text(encoding="utf-8"))
        assert isinstance(stage, WholeSet)
        _write(self, type(stage).__name__, lambda rows: stage.apply(rows, decision))


def _write(task: Task, name: str, judge: Callable[[list[Row]], Sequence[Outcome]]) -> None:
    """Write what stays of a shard, and count what does not."""
    rows = read_shard(task.source)
    before = [(dict(row), dict(values_of(row)), len(row["text"].encode())) for row in rows]
    outcomes = judge(rows)
    if len(outcomes) != len(before):
        raise RuntimeError(f"{name} was given {len(before)} rows and said what becomes of {len(outcomes)}")
    ledger, stay, gone = Ledger(), [], []
    for outcome, (row, known, size) in zip(outcomes, before, strict=True):
        left = (outcome.row or row) if isinstance(outcome, Drop) else outcome
        new = {name: value for name, value in values_of(left) if name not in known}
        if isinstance(outcome, Drop):
            ledger.drop(outcome, left, size, new)
            gone.append(told_of(outcome, row))
        else:
            ledger.keep(left, size, new)
            stay.append(left)
    ledger.balance(f"{name}, {task.source.name}")
    try:
        write_lines(dropped_of(task.target), gone)
        write_shard(task.target, task.key, stay, ledger)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{name} wrote into a row of {task.source.name} what JSON cannot hold: {error}") from error


def told_of(drop: Drop, row: Row) -> Row:
    """What is written down of a row that goes."""
    return {"id": row["id"], "source": row.get("source", ""), "reason": drop.reason, "about": drop.about}


def modules_of(part: Part) -> Modules:
    """Name and file of every module that defines `part` or a part of it: a worker reads no JSON of parts it lacks."""
    names = sorted({type(one).__module__ for one in _parts_of(part)})
    return [(name, str(getattr(sys.modules[name], "__file__", ""))) for name in names]


def _parts_of(part: Part) -> Iterator[Part]:
    yield part
    for field in fields(part):
        value = getattr(part, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Part):
                yield from _parts_of(one)


def learn(modules: Modules) -> None:
    """Read `modules`, so that the parts that they define are known in this process."""
    for name, file in modules:
        if name in sys.modules:
            continue
        if name.startswith("nachim."):
            importlib.import_module(name)
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None  # it was loaded from there before
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
