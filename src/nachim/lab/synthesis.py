"""New tasks from old ones, round after round: propose, filter, ask, carry out, filter, and put what stays in the pool.

A round is a shard: it is written whole or not at all, with a ledger in which every proposal is kept or dropped for a
reason, and what it asks is a function of the study and of the rounds before it. Killed at any time, the same call goes
on; with a writer that answers the same again, the shards are the same.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nachim.data.instruct import Ask, Candidate, Method, Task
from nachim.data.ledger import Ledger
from nachim.data.novelty import Embed, Nearest, Pool
from nachim.data.shards import SUFFIX, Shard, digest, done, dropped_of, read_shard, write_lines, write_shard
from nachim.data.stage import Drop, Row
from nachim.lab.spending import Budget, Spent, send
from nachim.lab.writer import Answer, Asked, Failed, Writer
from nachim.spec import Part, UserError
from nachim.spec.disk import locked, read_json
from nachim.train.stopping import Stopped

NAME, TASKS = "synthesis.json", "tasks.jsonl.zst"
BARREN = 5
"""Rounds in turn that may keep nothing before the work ends."""
QUESTION_TOKENS = 8
Listen = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Synthesis(Part):
    """What decides the tasks: the method, who writes (`generator`), the seeds (`tasks`, a hash), and the filters.

    An instruction is dropped whose ROUGE-L with one of the pool is above `rouge`, or whose vector (by `embedding`) lies
    less than `distance` (1 - cosine) from one; a task whose 5-word shingles have more than `overlap` of Jaccard
    similarity with those of one.
    """

    method: Literal["self-instruct", "evol"]
    generator: str
    tasks: str
    embedding: str
    rouge: float
    distance: float
    overlap: float = 0.8
    per_round: int = 8
    seed: int = 0
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512

    def check(self) -> None:
        self.require_positive("per_round", "max_tokens", "top_p")
        for name in ("rouge", "distance", "overlap", "temperature"):
            if getattr(self, name) < 0:
                self.refuse(name, f"is {getattr(self, name)}; it must not be negative")


@dataclass(frozen=True)
class Made:
    """What came of it: the rounds' shards, all their ledgers in one, what was spent, and why it ended."""

    shards: list[Shard]
    ledger: Ledger
    spent: Spent
    ended: str


@dataclass(eq=False)
class _Item:
    """A candidate on its way: where it stands in its round, its scores, and what it came from."""

    candidate: Candidate
    place: int
    asked: Asked
    scores: dict[str, float] = field(default_factory=dict)


class Loop:
    """The folder `out` of a study. Raises UserError where it holds another one's."""

    def __init__(
        self,
        spec: Synthesis,
        method: Method,
        seeds: Sequence[Task],
        writer: Writer,
        embed: Embed,
        out: Path,
        budget: Budget = Budget(),
        listen: Listen = lambda what, done: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        told = out / NAME
        if told.exists() and (was := Part.from_json(read_json(told))) != spec:
            changed = [name for name in asdict(spec) if getattr(was, name, None) != getattr(spec, name)]
            raise UserError(f"{out} was made with another {', '.join(changed)}: choose another folder, or remove it")
        spec.save(told)
        self.spec, self.method, self.seeds, self.writer, self.out = spec, method, list(seeds), writer, out
        self.budget, self.listen, self.stopping, self.embed = budget, listen, stopping, embed
        self.pool, self.tasks, self.made = Pool(embed), dict[str, Task](), list[Task]()
        self.spent, self.shards = Spent(), list[Shard]()
        self._take_in(self.seeds)

    def run(self, count: int) -> Made:
        """Rounds until at least `count` tasks are there, the budget is spent, or nothing new comes any more."""
        with locked(self.out / ".lock"):
            barren, last = 0, ""
            for number in itertools.count():
                path = self.out / "rounds" / f"{number:05}{SUFFIX}"
                key = digest(self.spec.to_json(), number, last)
                shard = done(path, key)
                if shard is None:
                    if ended := self._ended(count, barren):
                        return self._result(ended)
                    shard = self._round(number, path, key)
                barren = 0 if shard.ledger.kept.rows else barren + 1
                last = shard.sha256
                self._know(shard)
            raise AssertionError("rounds have no end")

    def _ended(self, count: int, barren: int) -> str:
        if len(self.made) >= count:
            return "count"
        if self.budget.left(self.spent) == 0:
            return "budget"
        if barren >= BARREN:
            return "barren"
        if self.stopping():
            raise Stopped(None)
        return ""

    def _result(self, ended: str) -> Made:
        ledger = Ledger()
        for shard in self.shards:
            ledger.add(shard.ledger)
        ledger.balance(str(self.out))
        # one file to be read: beside rounds stand their notes, which are no tasks
        write_lines(self.out / TASKS, [row for shard in self.shards for row in read_shard(shard.path)])
        return Made(self.shards, ledger, self.spent, ended)

    def _know(self, shard: Shard) -> None:
        """Put what a round made into the pool."""
        rows = read_shard(shard.path)
        tasks = [Task(row["id"], row["instruction"], row["input"], row["output"], row["depth"]) for row in rows]
        self.made += tasks
        self._take_in(tasks)
        self.shards.append(shard)
        self.spent.add(shard.ledger.facts)

    def _take_in(self, tasks: Sequence[Task]) -> None:
        self.tasks |= {task.id: task for task in tasks}
        self.pool.add([t.id for t in tasks], [t.instruction for t in tasks], [t.text for t in tasks])

    def _round(self, number: int, path: Path, key: str) -> Shard:
        work = _Round(self, number)
        rows = work.rows()
        work.ledger.balance(str(path))
        work.ledger.facts = work.spent.to_json()
        write_lines(dropped_of(path), work.dropped)
        return write_shard(path, key, rows, work.ledger)


class _Round:
    """One round at work."""

    def __init__(self, loop: Loop, number: int) -> None:
        self.loop, self.number, self.spec, self.method = loop, number, loop.spec, loop.method
        self.draw = random.Random(int(digest(loop.spec.seed, number)[:15], 16))
        self.ledger, self.spent, self.dropped = Ledger(), Spent(), list[Row]()
        self.fresh, self.whole = Pool(loop.embed), Pool(loop.embed)

    def rows(self) -> list[Row]:
        """The tasks that stay."""
        items = self._proposed()
        items = [item for item in items if self._is_new(item)]
        items = self._questioned(items)
        return self._carried_out(items)

    def _proposed(self) -> list[_Item]:
        asks = self.method.asks(self.loop.seeds, self.loop.made, self.number, self.draw)
        found, place = list[_Item](), 0
        for ask, asked, answer in self._send("proposing", asks, self.spec.temperature, self.spec.max_tokens):
            if isinstance(answer, Failed):
                texts: list[str | Drop] = [Drop(answer.reason, answer.about)]
            else:
                texts = self.method.parsed(ask, answer.text, answer.cut)
            for text in texts:
                item = _Item(Candidate(text if isinstance(text, str) else "", ask), place, asked)
                place += 1
                if isinstance(text, Drop):
                    self._drop(item, text)
                else:
                    found.append(item)
        return found

    def _is_new(self, item: _Item) -> bool:
        """Whether an instruction stays beside the pool and those before it in the round; it is dropped if not."""
        said = item.candidate.instruction
        if reason := self.method.refused(item.candidate):
            self._drop(item, Drop(reason))
            return False
        rouge = max(self.loop.pool.rouge(said), self.fresh.rouge(said), key=_score)
        cosine = max(self.loop.pool.cosine(said), self.fresh.cosine(said), key=_score)
        item.scores = {"rouge_l": rouge.score, "distance": 1 - cosine.score}
        if rouge.score > self.spec.rouge:
            self._drop(item, Drop("like one in the pool, by ROUGE-L", rouge.id))
        elif item.scores["distance"] < self.spec.distance:
            self._drop(item, Drop("like one in the pool, by vectors", cosine.id))
        else:
            self.fresh.add([self._id(item)], [said], [said])
            return True
        return False

    def _questioned(self, items: list[_Item]) -> list[_Item]:
        asks = [Ask(self.method.question(item.candidate, self._parent(item)), (), "question") for item in items]
        found = []
        for item, (_, _, answer) in zip(items, self._send("asking", asks, 0.0, QUESTION_TOKENS), strict=True):
            if isinstance(answer, Failed):
                self._drop(item, Drop(answer.reason, answer.about))
                continue
            settled = self.method.settled(item.candidate, answer.text)
            if isinstance(settled, Drop):
                self._drop(item, settled)
            else:
                item.candidate = settled
                found.append(item)
        return found

    def _carried_out(self, items: list[_Item]) -> list[Row]:
        asks = [self.method.request(item.candidate, self.loop.seeds, self.draw) for item in items]
        sent = self._send("carrying out", asks, self.spec.temperature, self.spec.max_tokens)
        rows = []
        for item, (ask, asked, answer) in zip(items, sent, strict=True):
            if isinstance(answer, Failed):
                self._drop(item, Drop(answer.reason, answer.about))
                continue
            parent = self._parent(item)
            task = Task(self._id(item), item.candidate.instruction, depth=parent.depth + 1 if parent else 0)
            filled = (
                Drop("cut short", answer.text) if answer.cut else self.method.filled(item.candidate, answer.text, task)
            )
            if isinstance(filled, Task):
                near = max(self.loop.pool.overlap(filled.text), self.whole.overlap(filled.text), key=_score)
                item.scores["overlap"] = near.score
                if near.score > self.spec.overlap:
                    filled = Drop("like one in the pool, by shingles", near.id)
            if isinstance(filled, Drop):
                self._drop(item, filled)
                continue
            self.whole.add([filled.id], [filled.instruction], [filled.text])
            rows.append(self._kept(item, filled, ask, asked))
        return rows

    def _send(
        self, what: str, asks: Sequence[Ask], temperature: float, most: int
    ) -> list[tuple[Ask, Asked, Answer | Failed]]:
        """Have prompts answered, within the budget."""
        asked = [
            Asked(ask.prompt, self._seed(what, place), most, temperature, self.spec.top_p, ask.stop)
            for place, ask in enumerate(asks)
        ]

        def heard(done: float) -> None:
            self.loop.listen(f"round {self.number}: {what}", done)

        found = send(self.loop.writer, asked, self.loop.budget, self.loop.spent, self.spent, heard)
        return list(zip(asks, asked, found, strict=True))

    def _seed(self, what: str, place: int) -> int:
        return int(digest(self.spec.seed, self.number, what, place)[:7], 16)  # fits 31 bits, as some servers want it

    def _id(self, item: _Item) -> str:
        return f"{item.candidate.ask.root or self.method.name}/{self.number:04}-{item.place:03}"

    def _parent(self, item: _Item) -> Task | None:
        ask = item.candidate.ask
        return self.loop.tasks[ask.parents[0]] if ask.root else None

    def _kept(self, item: _Item, task: Task, ask: Ask, asked: Asked) -> Row:
        first = item.candidate.ask
        row: Row = {"id": task.id, "text": task.text, "source": self.method.name, **asdict(task)}
        row |= {"kind": item.candidate.kind, **item.scores}
        row["provenance"] = {
            "method": self.method.name,
            "operation": first.operation,
            "parents": list(first.parents),
            "generator": self.loop.writer.name,
            "round": self.number,
            "prompts": {"proposal": _told(item.asked), "answer": {**_told(asked), "shown": list(ask.parents)}},
        }
        self.ledger.keep(row, len(task.text.encode()), {"kind": item.candidate.kind, **item.scores})
        return row

    def _drop(self, item: _Item, drop: Drop) -> None:
        text = item.candidate.instruction or drop.about
        row: Row = {"id": self._id(item), "text": text, "source": self.method.name}
        self.dropped.append({**row, "reason": drop.reason, "about": drop.about, **item.scores})
        self.ledger.drop(drop, row, len(text.encode("utf-8", "replace")), item.scores)


def _score(nearest: Nearest) -> float:
    return nearest.score


def _told(asked: Asked) -> dict[str, Any]:
    """A prompt by its hash, and how its answer was drawn."""
    told = {name: value for name, value in asdict(asked).items() if name not in ("prompt", "stop")}
    return {"sha256": hashlib.sha256(asked.prompt.encode("utf-8", "surrogatepass")).hexdigest(), **told}
