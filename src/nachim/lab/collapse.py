"""A model trained on what models wrote, generation after generation: does it collapse, and what prevents it?

Generation 0 learns human text. Every later one is drawn anew and trained, as long and by the same loop, on text that
the generations before it wrote, with a share of human text (arXiv 2305.17493; the texts kept or not: 2404.01413). Each
writes as much text as the human text has, document by document from the end-of-text token on, through the engine, and
is judged on held-out human text. A study is a folder; killed at any time, the same call goes on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nachim.data.passages import drawn, passages
from nachim.data.prepare import prepare
from nachim.data.read import Report
from nachim.data.shards import Shard, digest, read_shard, write_lines
from nachim.data.source import open_source
from nachim.evaluate.generation import Human, Measured
from nachim.lab.work import Place, carry_out, settle
from nachim.lab.written import Writing, written
from nachim.spec import Data, Files, Ingredient, Mixture, Part, Run, UserError
from nachim.spec.disk import locked, read_json, write_text
from nachim.train.loop import Watch

HUMAN, NAME, TEXT = "human", "collapse.json", "text.jsonl.zst"
TOKENS = "1"
"""The tail that is judged: that of tokens, which small texts measure with less noise than that of pairs."""
Listen = Callable[[str, float], None]
"""Hears what is at work, and the share of it done."""


@dataclass(frozen=True, kw_only=True)
class Arm(Part):
    """What a generation reads: the last generation's text (`replace`) or that of all before it (`accumulate`).

    `human` is the share of human text among it; None gives human text as much as each generation's: 1 / (g + 1).
    """

    keep: Literal["replace", "accumulate"]
    human: float | None

    def check(self) -> None:
        if self.human is not None and not 0 <= self.human <= 1:
            self.refuse("human", f"is {self.human}; it must be between 0 and 1, or None")

    @property
    def name(self) -> str:
        """Such as replace-0.25, or accumulate."""
        return self.keep if self.human is None else f"{self.keep}-{self.human:g}"

    def weights(self, generation: int) -> dict[int | None, float]:
        """The share of human text (None) and of each generation's text in what `generation` reads; they sum to 1."""
        texts = range(generation) if self.keep == "accumulate" else range(generation - 1, generation)
        human = 1 / (len(texts) + 1) if self.human is None else self.human
        return {None: human, **{text: (1 - human) / len(texts) for text in texts}}


@dataclass(frozen=True, kw_only=True)
class Collapse(Part):
    """A study: how every generation is trained (`run`, whose corpus is the human text) and writes, and the arms.

    Of the corpus, passages of at most `passage` characters are drawn that have `text_bytes` together, one part in ten
    held out; a passage must fit `run.data.seq_len` tokens to be written whole. More arms, seeds and generations may be
    asked of a folder that has some.
    """

    run: Run
    arms: tuple[Arm, ...]
    generations: int = 5
    seeds: int = 2
    text_bytes: int = 300_000
    passage: int = 200
    temperature: float = 1.0
    top_p: float = 1.0

    def check(self) -> None:
        self.require_positive("generations", "seeds", "text_bytes", "passage", "temperature", "top_p")
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            self.refuse("arms", f"are {', '.join(names) or 'none'}; give at least one, and each once")
        if isinstance(self.run.data.corpus, Mixture):
            self.refuse("run", "reads a mixture; the human text must be one corpus")

    @property
    def text(self) -> str:
        """What decides the text of a generation: as long as it stays, what is in a folder can be gone on with."""
        settled = replace(self, arms=(Arm(keep="replace", human=0.0),), generations=1, seeds=1)
        return digest(settled.to_json())


@dataclass(frozen=True)
class Row:
    """One generation: its arm (None for generation 0, which all arms share), seed, number, and what was measured."""

    arm: str | None
    seed: int
    generation: int
    measured: Measured


class Study:
    """The folder `out` of a study. Raises UserError where it holds another one's."""

    def __init__(self, spec: Collapse, out: Path, place: Place, listen: Listen, watch: Watch = Watch()) -> None:
        self.spec, self.out, self.place, self.listen, self.watch = spec, out, place, listen, watch
        told = out / NAME
        if told.exists() and Collapse.from_json(read_json(told)).text != spec.text:
            raise UserError(f"{out} holds a study of other text or training: choose another folder, or remove it")
        spec.save(told)
        self.human = self._human()
        self.data = replace(spec.run.data, corpus=self.human)
        prepared = prepare(self.data, place.cache)
        self.reference = Human.of(prepared)

    def _human(self) -> Files:
        path, held = self.out / "human.jsonl.zst", self.spec.text_bytes // 10
        if not path.exists():
            texts = (raw.decode() for raw in open_source(self.spec.run.data.corpus).documents(Report()))
            pieces = itertools.chain.from_iterable(passages(text, self.spec.passage) for text in texts)
            write_lines(path, [{"text": text} for text in drawn(pieces, self.spec.text_bytes)])
        return Files(path=str(path), validation_bytes=held, near_duplicates=True)

    def rows(self) -> Iterator[Row]:
        """Every generation of every arm and seed, as it is done; those that are done already come at once."""
        with locked(self.out / ".lock"):
            settle(self.place)
            for seed in range(self.spec.seeds):
                first = self.out / f"seed-{seed}" / "generation-0"
                yield Row(None, seed, 0, self._generation(None, seed, 0, first, {}))
                for arm in self.spec.arms:
                    folders = {0: first}
                    for number in range(1, self.spec.generations + 1):
                        folders[number] = self.out / f"seed-{seed}" / arm.name / f"generation-{number}"
                        measured = self._generation(arm, seed, number, folders[number], folders)
                        yield Row(arm.name, seed, number, measured)

    def _generation(self, arm: Arm | None, seed: int, number: int, folder: Path, folders: dict[int, Path]) -> Measured:
        done = folder / "measured.json"
        if done.exists():
            return Measured(**read_json(done))
        run = self.run_of(arm, seed, number, folders)
        title = f"{arm.name if arm else HUMAN}, seed {seed}, generation {number}"

        def heard(run: Run, step: int, loss: float) -> None:
            self.listen(f"{title}: training", step / run.train.steps)

        found = carry_out(run, folder / "run", self.place, heard, watch=self.watch)
        bpb = found["validation"]["sources"][HUMAN]["bpb"]
        shards = self._write(folder, arm, seed, number, title)
        # one file to be read: beside shards stand their notes, which are no text
        write_lines(folder / TEXT, [row for shard in shards for row in read_shard(shard.path)])
        measured = self.reference.measured(bpb, shards)
        write_text(done, json.dumps(measured.to_json(), indent=1) + "\n")
        return measured

    def run_of(self, arm: Arm | None, seed: int, number: int, folders: dict[int, Path]) -> Run:
        """What generation `number` is trained by: the study's run with weights and order drawn anew, on its mixture."""
        parts = []
        for text, weight in (arm.weights(number) if arm else {None: 1.0}).items():
            name = HUMAN if text is None else f"generation-{text}"
            corpus = self.human if text is None else self._text(folders[text])
            parts.append(Ingredient(name=name, corpus=corpus, weight=weight))
        drawn_by = 1000 * seed + number
        data: Data = replace(self.data, corpus=Mixture(ingredients=tuple(parts)), seed=drawn_by)
        return replace(self.spec.run, data=data, train=replace(self.spec.run.train, seed=drawn_by))

    def _text(self, folder: Path) -> Files:
        held = max(1, self.human.validation_bytes // 4)
        return Files(path=str(folder / TEXT), validation_bytes=held, near_duplicates=True)

    def _write(self, folder: Path, arm: Arm | None, seed: int, number: int, title: str) -> list[Shard]:
        writing = Writing(
            tokens=self.reference.tokens,
            temperature=self.spec.temperature,
            top_p=self.spec.top_p,
            salt=f"{arm.name if arm else HUMAN} {seed} {number}",
        )

        def heard(done: float) -> None:
            self.listen(f"{title}: writing", done)

        return written(folder / "run", folder / "shards", writing, heard, self.watch.stopping)


@dataclass(frozen=True)
class Criterion:
    """When a generation has collapsed: held-out human text costs it more than `rise` above what it costs generation 0
    of the same seed, or the rare tokens of human text have less than `tail` of the mass that they have in its text."""

    rise: float = 0.1
    tail: float = 0.5

    def broken(self, now: Measured, first: Measured) -> str | None:
        """Which of the two holds, "bpb" before "tail"; None where neither does."""
        if now.bpb > (1 + self.rise) * first.bpb:
            return "bpb"
        return "tail" if now.tail[TOKENS] < self.tail * first.tail[TOKENS] else None


def collapses(rows: Sequence[Row], arm: str, seed: int, criterion: Criterion) -> tuple[int, str] | None:
    """The generation from which on an arm of one seed has collapsed to its last, and by what; None where it has not."""
    first = next(row.measured for row in rows if row.arm is None and row.seed == seed)
    found = None
    for row in sorted(rows, key=lambda row: -row.generation):
        if row.arm == arm and row.seed == seed:
            why = criterion.broken(row.measured, first)
            if why is None:
                return found
            found = (row.generation, why)
    return found


def summary(rows: Sequence[Row], reference: Human, criterion: Criterion) -> dict[str, Any]:
    """Everything a study shows, as plain JSON values: of each arm the generations, where it collapses by each seed."""
    seeds = sorted({row.seed for row in rows})
    arms = []
    for arm in dict.fromkeys(row.arm for row in rows if row.arm is not None):
        by_seed = {seed: collapses(rows, arm, seed, criterion) for seed in seeds if _has(rows, arm, seed)}
        told = [
            {"seed": seed, "generation": at[0] if at else None, "by": at[1] if at else None}
            for seed, at in by_seed.items()
        ]
        found = [row for row in rows if row.seed in by_seed and row.arm in (None, arm)]
        numbers = sorted({row.generation for row in found})
        generations = [[row.measured.to_json() for row in found if row.generation == number] for number in numbers]
        arms.append({"arm": arm, "collapse": told, "generations": generations})
    return {
        "human": {"tokens": reference.tokens, **reference.figures},
        "criterion": asdict(criterion),
        "seeds": seeds,
        "arms": arms,
    }


def _has(rows: Sequence[Row], arm: str, seed: int) -> bool:
    return any(row.arm == arm and row.seed == seed for row in rows)
