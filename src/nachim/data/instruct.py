"""Tasks for an assistant, and Self-Instruct (arXiv 2212.10560): new tasks from a few old ones shown in a prompt.

A method is pure: it says what to ask, and what an answer comes to. Who answers, and how often, is nothing to it. Every
task goes three steps: its instruction is proposed, one question is asked about it, and it is carried out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from nachim.data.read import Report, objects
from nachim.data.records import size_of
from nachim.data.stage import Drop
from nachim.spec.error import UserError


@dataclass(frozen=True)
class Task:
    """An instruction, what it is to be done to (often nothing), and an answer. `depth` counts how often it evolved."""

    id: str
    instruction: str
    input: str = ""
    output: str = ""
    depth: int = 0

    @property
    def text(self) -> str:
        """All of it, as a model is trained on it."""
        return "\n\n".join(part for part in (self.instruction, self.input, self.output) if part)


@dataclass(frozen=True)
class Ask:
    """One prompt; `parents` are the ids of the tasks that it shows, `operation` what it asks for.

    `root` is the seed whose line a task goes on with; empty where it begins its own.
    """

    prompt: str
    parents: tuple[str, ...]
    operation: str
    stop: tuple[str, ...] = ()
    root: str = ""


@dataclass(frozen=True)
class Candidate:
    """A proposed instruction, the prompt that it came from, and what the question about it was answered."""

    instruction: str
    ask: Ask
    kind: str = ""


class Method(Protocol):
    """How new tasks come from old ones."""

    name: str

    def asks(self, seeds: Sequence[Task], made: Sequence[Task], number: int, draw: random.Random) -> list[Ask]:
        """The prompts of round `number`, from the seeds and the tasks made before it."""

    def parsed(self, ask: Ask, answer: str, cut: bool) -> list[str | Drop]:
        """The instructions in an answer (at least one item); `cut` says that the answer reached its limit of tokens."""

    def refused(self, candidate: Candidate) -> str | None:
        """Why an instruction is no use, whatever else is in the pool; None for one that may be."""

    def question(self, candidate: Candidate, asked: Task | None) -> str:
        """What is asked about a candidate; `asked` is the task that it came from, where that was one."""

    def settled(self, candidate: Candidate, answer: str) -> Candidate | Drop:
        """The candidate after its question was answered."""

    def request(self, candidate: Candidate, seeds: Sequence[Task], draw: random.Random) -> Ask:
        """The prompt that has a candidate carried out."""

    def filled(self, candidate: Candidate, answer: str, task: Task) -> Task | Drop:
        """`task`, which has the instruction, with the input and output in an answer."""


BEYOND = frozenset(
    [
        *("image", "images", "picture", "pictures", "photo", "photos", "graph", "graphs", "chart", "map", "diagram"),
        *("video", "audio", "file"),
    ]
)
"""Things that text cannot hold: a task about one of them cannot be carried out."""
SHORTEST, LONGEST = 3, 150
"""Words of an instruction."""
_NUMBER = re.compile(r"(?:^|\n)[ \t]*(?:task[ \t]*\d+[ \t]*[:.)]|\d+[ \t]*[.)])[ \t]*", re.IGNORECASE)
_PARTS = re.compile(r"(?:^|\n)[ \t]*(input|output|label)[ \t]*:[ \t]*", re.IGNORECASE)
NOTHING = frozenset({"", "none", "n/a", "(empty)", "empty", "no input", "<noinput>"})


@dataclass(frozen=True)
class SelfInstruct:
    """New tasks from lists of `shots` old ones, of which at most `own` were made before; `per_round` lists a round."""

    per_round: int = 8
    shots: int = 8
    own: int = 2
    more: int = 8
    """Tasks asked for in one answer."""
    name: str = "self-instruct"

    def asks(self, seeds: Sequence[Task], made: Sequence[Task], number: int, draw: random.Random) -> list[Ask]:
        """Lists of tasks to go on with."""
        found = []
        for _ in range(self.per_round):
            own = draw.sample(list(made), min(self.own, len(made)))
            shown = [*draw.sample(list(seeds), min(self.shots - len(own), len(seeds))), *own]
            draw.shuffle(shown)
            lines = [f"Task {place}: {_line(task.instruction)}" for place, task in enumerate(shown, start=1)]
            head = (
                f"Below is a list of {len(shown) + self.more} tasks for a text assistant. Each is of another kind than "
                "those before it, stands by itself, and can be done with text alone."
            )
            prompt = "\n".join([head, "", *lines, f"Task {len(shown) + 1}:"])
            stop = (f"Task {len(shown) + self.more + 1}",)
            found.append(Ask(prompt, tuple(task.id for task in shown), "list", stop))
        return found

    def parsed(self, ask: Ask, answer: str, cut: bool) -> list[str | Drop]:
        """One instruction a number; what stands before the first number belongs to the number that the prompt gave."""
        pieces = [piece.strip() for piece in _NUMBER.split(answer)]
        found: list[str | Drop] = []
        for place, piece in enumerate(pieces):
            if not piece:
                continue
            if cut and place == len(pieces) - 1:
                found.append(Drop("cut short", piece))
            elif place == 0 and piece.endswith(":") and len(pieces) > 1:
                continue  # "Here are eight more tasks:"
            else:
                found.append(piece)
        return found or [Drop("no task in the answer", answer)]

    def refused(self, candidate: Candidate) -> str | None:
        """Too short or long, about what text cannot hold, or copied from the prompt's own words."""
        return refused(candidate.instruction)

    def question(self, candidate: Candidate, asked: Task | None) -> str:
        """Whether it is a task of classification: its example is then made from the label, lest all have one label."""
        return (
            "Is the answer to this task always one of a few labels that are known beforehand? Say Yes or No.\n\n"
            f"Task: {candidate.instruction}\nAnswer:"
        )

    def settled(self, candidate: Candidate, answer: str) -> Candidate | Drop:
        """Every answer but a plain yes is taken for a no."""
        yes = answer.strip().lower().startswith("yes")
        return replace(candidate, kind="classification" if yes else "open")

    def request(self, candidate: Candidate, seeds: Sequence[Task], draw: random.Random) -> Ask:
        """An example of the task: input and output, or for classification a label and then an input that has it."""
        if candidate.kind == "classification":
            head = "Give an example of the task: first one of its labels, then an input that has this label."
            prompt = f"{head}\n\nTask: {candidate.instruction}\nLabel:"
            return Ask(prompt, (), "label first", ("\nTask:",))
        done = [task for task in seeds if task.output]
        shown = draw.sample(done, min(2, len(done)))
        shots = [f"Task: {task.instruction}\nInput: {task.input or 'none'}\nOutput: {task.output}" for task in shown]
        head = "Give an example of each task: the input it is done to, or none where it needs no input, and the output."
        parts = [head, *shots, f"Task: {candidate.instruction}\nInput:"]
        return Ask("\n\n".join(parts), tuple(task.id for task in shown), "input first", ("\nTask:",))

    def filled(self, candidate: Candidate, answer: str, task: Task) -> Task | Drop:
        """The parts of the answer by their names; the first belongs to the name that the prompt ended with."""
        first = "label" if candidate.kind == "classification" else "input"
        pieces = _PARTS.split(answer)
        found = {first: pieces[0].strip()} if pieces[0].strip() else {}
        for name, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            found.setdefault(name.lower(), piece.strip())
        given, output = found.get("input", ""), found.get("output") or found.get("label", "")
        given = "" if given.lower().strip(".") in NOTHING else given
        if not output:
            return Drop("no output in the answer", answer)
        if given == output:
            return Drop("the output repeats the input", answer)
        return replace(task, input=given, output=output)


def refused(instruction: str) -> str | None:
    """Why an instruction is no use to a text assistant; None for one that may be."""
    words = instruction.split()
    if len(words) < SHORTEST:
        return "too short"
    if len(words) > LONGEST:
        return "too long"
    if not instruction[0].isalnum() and instruction[0] not in "\"'“‘(¿¡":
        return "begins with a sign"
    if BEYOND & {word.strip(".,;:?!()\"'").lower() for word in words}:
        return "about what text cannot hold"
    return None


def _line(text: str) -> str:
    return " ".join(text.split())


def read_tasks(path: Path, report: Report) -> list[Task]:
    """Seed tasks from JSON lines: `instruction`, and if they are there `id`, `input` and `output`.

    Lines that are none are counted in `report`. Raises UserError where none is left.
    """
    size_of(path)
    found: dict[str, Task] = {}
    for place, _, row in objects(path, path.name, "instruction", report):
        parts = [row[name] if isinstance(row.get(name), str) else "" for name in ("instruction", "input", "output")]
        given = row.get("id")
        known = str(given) if isinstance(given, str | int) else place.rpartition(", ")[2]
        if not parts[0].strip():
            report.skip("no instruction", place)
        elif known in found:
            report.skip("an id that was there before", place)
        else:
            report.documents += 1
            found[known] = Task(known, *(part.strip() for part in parts))
    if not found:
        raise UserError(f"no task in {path}" + "".join(f"; {note}" for note in report.notes()))
    return list(found.values())
