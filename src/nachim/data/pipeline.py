"""A pipeline is a value: where documents come from, and the stages they pass. Building it again does what changed.

A build is a folder: `stages/NAME/` has the shards and ledgers of each stage, `shards/` those of the last, which
`Files(path="OUT/shards")` reads, and `ledger.json` what became of every row. A shard's key is what it is made from (the
settings, the content of the shard before, the content of the files a stage reads), so whatever is there under the right
key is not made again; the number of workers, and what was killed, do not show in a byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nachim.data.ingest import Origin, Read, readings
from nachim.data.ledger import Count, Ledger
from nachim.data.pool import Pool, Runner, here
from nachim.data.shards import Shard, clear_others, digest, digest_of_file, done, note_of, read_shard
from nachim.data.stage import PerRow, Shelf, Stage, WholeSet
from nachim.data.work import Decided, RowByRow, Summarised, modules_of
from nachim.spec.data import Data, Files
from nachim.spec.disk import locked, replacing, write_text
from nachim.spec.error import UserError
from nachim.spec.part import Part

Listen = Callable[[str, float], None]
"""Hears the stage at work and the share of it done."""


@dataclass(frozen=True, kw_only=True)
class Pipeline(Part):
    """From `origins` through `stages`, in shards of about `shard_bytes` of text, and on to `tokens` if they are given.

    Of the corpus that `tokens` names only what it says of validation is taken: its documents are the build's.
    """

    title: str = "data"
    origins: tuple[Origin, ...]
    stages: tuple[Stage, ...] = ()
    tokens: Data | None = None
    shard_bytes: int = 16_000_000

    def check(self) -> None:
        self.require_positive("shard_bytes")
        if not self.origins:
            self.refuse("origins", "names none; add an Origin")
        for stage in self.stages:
            if not isinstance(stage, PerRow | WholeSet):
                self.refuse("stages", f"has {type(stage).__name__}, which is neither a PerRow nor a WholeSet")


@dataclass(frozen=True)
class Passed:
    """A stage that was gone through: its name, its settings (none for reading) and what became of the rows."""

    name: str
    stage: Stage | None
    ledger: Ledger
    made: int
    """Shards that had to be made: 0 where all was there already."""


@dataclass(frozen=True)
class Built:
    """What a build left: the stages in order, and the last one's shards."""

    pipeline: Pipeline
    out: Path
    passed: tuple[Passed, ...]
    read: tuple[Shard, ...]
    shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the rows that came out, in their order."""
        return digest([shard.sha256 for shard in self.shards])

    @property
    def data(self) -> Data | None:
        """What a run that reads these shards has for its `data`, where the pipeline says how to make tokens."""
        asked = self.pipeline.tokens
        if asked is None:
            return None
        corpus = Files(
            path=str((self.out / "shards").resolve()),
            validation_bytes=asked.corpus.validation_bytes,
            near_duplicates=asked.corpus.near_duplicates,
        )
        return replace(asked, corpus=corpus)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON: nothing in it depends on workers, time or what was there before."""
        stages = [
            {"name": one.name, "stage": one.stage.to_json() if one.stage else None, **one.ledger.to_json()}
            for one in self.passed
        ]
        shards = [{"name": shard.path.name, "sha256": shard.sha256} for shard in self.shards]
        told = {"pipeline": self.pipeline.to_json(), "fingerprint": self.fingerprint, "origins": self.origins()}
        return {**told, "stages": stages, "shards": shards}

    def origins(self) -> list[dict[str, Any]]:
        """Of every origin the rows and bytes that were read of it, and those that came through."""
        told = []
        for number, origin in enumerate(self.pipeline.origins):
            came, kept = Count(), Count()
            for total, shards in ((came, self.read), (kept, self.shards)):
                for shard in shards:
                    if shard.path.name.startswith(f"{number:02}-"):
                        total.add(shard.kept.rows, shard.kept.bytes)
            told.append({"name": origin.title, "licence": origin.licence, "read": asdict(came), "kept": asdict(kept)})
        return told


def build(
    pipeline: Pipeline,
    out: Path,
    workers: int = 1,
    listen: Listen = lambda stage, done: None,
    elsewhere: Runner | None = None,
) -> Built:
    """Carry out `pipeline` into `out` with `workers` processes; what is there and has not changed is not done again.

    Tasks may be carried out `elsewhere`, where `out` stands under the same path (`nachim.lab.launch.tasks`). Raises
    UserError for whatever a person can mend; killed at any time, the same call goes on.
    """
    if workers < 1:
        raise UserError(f"{workers} workers cannot work; give at least 1")
    out = out.absolute()
    with locked(out / ".lock"), contextlib.ExitStack() as stack:
        run: Runner = elsewhere or here
        if workers > 1 and elsewhere is None:
            run = stack.enter_context(Pool(workers, modules_of(pipeline)))
        return _Build(pipeline, out / "stages", run, listen).into(out)


class _Build:
    """One build at work."""

    def __init__(self, pipeline: Pipeline, folder: Path, run: Runner, listen: Listen) -> None:
        self.pipeline, self.folder, self.run, self.listen = pipeline, folder, run, listen

    def into(self, out: Path) -> Built:
        """Go through every stage, and put the last one's shards into `out`."""
        passed, read = self._read()
        shards = read
        for name, stage in zip(names_of(self.pipeline.stages), self.pipeline.stages, strict=True):
            one, shards = self._pass(name, stage, shards)
            if one.ledger.came.rows != passed[-1].ledger.kept.rows:
                raise RuntimeError(f"{name} was given {one.ledger.came.rows} rows of {passed[-1].ledger.kept.rows}")
            passed.append(one)
        built = Built(self.pipeline, out, tuple(passed), tuple(read), tuple(shards))
        publish(built)
        for left in self.folder.iterdir():
            if left.name not in {one.name for one in passed}:
                shutil.rmtree(left)
        return built

    def _read(self) -> tuple[list[Passed], list[Shard]]:
        folder = self.folder / "read"
        tasks = readings(self.pipeline.origins, folder, self.pipeline.shard_bytes)
        made = self._run("read", tasks)
        shards = [shard for task in tasks for shard in _shards_of(task)]
        clear_others(folder, (task.target.name for task in tasks))
        _clear_shards(folder / "shards", shards)
        ledger = _total("read", shards)
        if not ledger.kept.rows:
            lost = "; ".join(f"{count.rows:,} left out: {reason}" for reason, count in ledger.dropped.items())
            raise UserError(f"no document in {', '.join(one.title for one in self.pipeline.origins)}; {lost}")
        return [Passed("read", None, ledger, made)], shards

    def _pass(self, name: str, stage: Stage, shards: Sequence[Shard]) -> tuple[Passed, list[Shard]]:
        folder, told = self.folder / name, json.dumps(stage.to_json(), sort_keys=True)
        key = digest(told, stage.VERSION, [digest_of_file(path) for path in stage.files()])
        targets = [folder / "shards" / shard.path.name for shard in shards]
        facts: dict[str, Any] = {}
        tasks: list[RowByRow | Decided] = []
        if isinstance(stage, WholeSet):
            decisions, facts = self._decide(name, stage, shards, key)
            for shard, target, decision in zip(shards, targets, decisions, strict=True):
                again = digest(key, shard.sha256, digest_of_file(decision))
                tasks.append(Decided(told, shard.path, target, again, decision))
        else:
            for shard, target in zip(shards, targets, strict=True):
                tasks.append(RowByRow(told, shard.path, target, digest(key, shard.sha256)))
        made = self._run(name, tasks)
        found = [_known(task.target, task.key) for task in tasks]
        _clear_shards(folder / "shards", found)
        ledger = _total(name, found)
        ledger.facts = facts
        return Passed(name, stage, ledger, made), found

    def _decide(
        self, name: str, stage: WholeSet, shards: Sequence[Shard], key: str
    ) -> tuple[list[Path], dict[str, Any]]:
        """The files with the stage's decision about each shard, and its facts."""
        folder, told = self.folder / name, json.dumps(stage.to_json(), sort_keys=True)
        stems = [note_of(shard.path).stem for shard in shards]
        parts = [
            Summarised(told, shard.path, folder / "summaries" / f"{stem}.npz", digest("summary", key, shard.sha256))
            for shard, stem in zip(shards, stems, strict=True)
        ]
        decisions = [folder / "decisions" / f"{stem}.json" for stem in stems]
        note, whole = folder / "facts.json", digest("joined", key, [shard.sha256 for shard in shards])
        facts = _facts(note, whole, decisions)
        if facts is None:
            self._run(f"{name}: looking", parts)
            note.unlink(missing_ok=True)  # until all decisions are there again, it would speak of others
            scratch = folder / "scratch"
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            shelf = Shelf(
                count=len(shards),
                counts=tuple(shard.kept.rows for shard in shards),
                rows=lambda i: read_shard(shards[i].path),
                summary=lambda i: parts[i].read(),
                scratch=scratch,
                tick=lambda share: self.listen(f"{name}: deciding", share),
            )
            joined = stage.join(shelf)
            for path, decision in zip(decisions, joined.decisions, strict=True):
                write_text(path, json.dumps(decision) + "\n")
            shutil.rmtree(scratch)
            facts = joined.facts
            write_text(note, json.dumps({"key": whole, "facts": facts}) + "\n")
        for place, files in (("summaries", [part.target for part in parts]), ("decisions", decisions)):
            clear_others(folder / place, (path.name for path in files))
        return decisions, facts

    def _run(self, name: str, tasks: Sequence[Any]) -> int:
        """Carry out those of `tasks` that are not done; how many."""
        left = [task for task in tasks if not task.known()]
        self.listen(name, 0.0)
        self.run(left, lambda count: self.listen(name, count / len(left)))
        self.listen(name, 1.0)
        return len(left)


def names_of(stages: Sequence[Stage]) -> list[str]:
    """The name of each stage's folder: its class, its settings' fingerprint, and a number where it comes again."""
    plain = [f"{type(stage).__name__.lower()}-{stage.fingerprint[:8]}" for stage in stages]
    return [name if (n := plain[:i].count(name)) == 0 else f"{name}-{n + 1}" for i, name in enumerate(plain)]


def publish(built: Built) -> None:
    """Put the last stage's shards and what became of every row into the folder; the ledger comes when all are there."""
    out = built.out
    (out / "ledger.json").unlink(missing_ok=True)
    for shard in built.shards:
        with replacing(out / "shards" / shard.path.name) as temporary:
            _linked(shard.path, temporary)
    clear_others(out / "shards", (shard.path.name for shard in built.shards))
    built.pipeline.save(out / "pipeline.json")
    write_text(out / "ledger.json", json.dumps(built.to_json(), indent=1) + "\n")


def _linked(path: Path, other: Path) -> None:
    """`other` with the content of `path`: the same bytes on the disk where the file system can."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _facts(note: Path, key: str, decisions: Sequence[Path]) -> dict[str, Any] | None:
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        facts: dict[str, Any] = told["facts"]
        return facts if told["key"] == key and all(path.exists() for path in decisions) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shards_of(task: Read) -> list[Shard]:
    shards = task.shards()
    assert shards is not None, f"{task.target} is not done"
    return shards


def _known(target: Path, key: str) -> Shard:
    shard = done(target, key)
    assert shard is not None, f"{target} is not done"
    return shard


def _clear_shards(folder: Path, shards: Sequence[Shard]) -> None:
    clear_others(folder, (path.name for shard in shards for path in (shard.path, note_of(shard.path))))
    clear_others(folder.parent / "dropped", (shard.path.name for shard in shards))


def _total(name: str, shards: Sequence[Shard]) -> Ledger:
    """What became of the rows of all `shards`."""
    total = Ledger()
    for shard in shards:
        total.add(shard.ledger)
    total.balance(name)
    return total
