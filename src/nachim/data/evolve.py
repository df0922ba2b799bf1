"""Evol-Instruct (arXiv 2304.12244): tasks rewritten into harder ones, or into new ones of the same field.

Each round evolves the latest version of the next seeds in turn, by an operation drawn for each. What is eliminated
leaves its parent in the pool, to be evolved another way when its turn comes again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nachim.data.instruct import Ask, Candidate, Task, refused
from nachim.data.novelty import words_of
from nachim.data.stage import Drop

DEPTH = {
    "constraints": "Add one condition that a good answer has to meet beyond those that are there.",
    "deepen": "Ask for more than the surface of the matter: causes, limits, or how it fits with something near to it.",
    "concretise": "Put particular cases, names, numbers or places where it now speaks in general.",
    "reasoning": "Change it so that nobody can answer in one step: several steps of thought have to be shown in turn.",
    "input": "Give it something to work on, written out in full: a table, a piece of code, JSON, a formula or a log.",
}
"""Operations in depth, by name."""
BREADTH = "breadth"
_DEEPER = (
    "Make the task below somewhat harder for a capable assistant. {how} It must still make sense to a person and be "
    "answerable with text alone; use at most twenty words more, besides any data that you add. Reply with the new "
    "task and nothing else.\n\nTask: {task}\n\nHarder task:"
)
_WIDER = (
    "Read the task below, then invent a different one: of the same field, but on something that is asked less often, "
    "about as long and about as hard. It must make sense by itself and be answerable with text alone. Reply with the "
    "new task and nothing else.\n\nTask: {task}\n\nNew task:"
)
ECHOES = ("harder task", "new task:", "task below", "twenty words")
"""Words of the prompts: an instruction that has them talks about itself."""
SORRY, EXCUSE_WORDS = "sorry", 80
FUNCTION_WORDS = frozenset(
    [
        *("a", "about", "also", "am", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can"),
        *("could", "did", "do", "does", "for", "from", "had", "has", "have", "he", "her", "his", "how", "i", "if"),
        *("in", "into", "is", "it", "its", "may", "me", "my", "no", "not", "of", "on", "or", "our", "she", "so"),
        *("than", "that", "the", "their", "them", "then", "there", "these", "they", "this", "to", "was", "we"),
        *("were", "what", "when", "which", "who", "will", "with", "would", "yes", "you", "your"),
    ]
)


@dataclass(frozen=True)
class Evolve:
    """`per_round` tasks a round, at most as many as there are seeds, one in `len(DEPTH) + 1` of them in breadth."""

    per_round: int = 8
    name: str = "evol"
    operations: tuple[str, ...] = field(default=(*DEPTH, BREADTH))

    def asks(self, seeds: Sequence[Task], made: Sequence[Task], number: int, draw: random.Random) -> list[Ask]:
        """The next seeds in turn, each in its latest version."""
        count = min(self.per_round, len(seeds))
        latest = _latest(seeds, made)
        turn = [seeds[(number * count + place) % len(seeds)] for place in range(count)]
        found = []
        for seed in turn:
            task, operation = latest[seed.id], draw.choice(self.operations)
            shown = task.instruction + (f"\n{task.input}" if task.input else "")
            form = _WIDER if operation == BREADTH else _DEEPER
            prompt = form.format(task=shown, how=DEPTH.get(operation, ""))
            found.append(Ask(prompt, (task.id,), operation, root=seed.id))
        return found

    def parsed(self, ask: Ask, answer: str, cut: bool) -> list[str | Drop]:
        """The whole answer is the instruction."""
        if cut:
            return [Drop("cut short", answer)]
        return [answer.strip()] if answer.strip() else [Drop("no task in the answer")]

    def refused(self, candidate: Candidate) -> str | None:
        """As tasks are refused elsewhere, and what copies the words of the prompt (elimination, fourth rule)."""
        low = candidate.instruction.lower()
        return "echoes the prompt" if any(echo in low for echo in ECHOES) else refused(candidate.instruction)

    def question(self, candidate: Candidate, asked: Task | None) -> str:
        """Whether anything was gained (elimination, first rule)."""
        before = asked.instruction if asked else ""
        return (
            "Here are two tasks. Do they ask for the same thing, under the same conditions and as deeply? Say Equal or "
            f"Different.\n\nFirst task: {before}\n\nSecond task: {candidate.instruction}\n\nAnswer:"
        )

    def settled(self, candidate: Candidate, answer: str) -> Candidate | Drop:
        """Gone where the answer begins with equal; every other answer lets it stay."""
        if answer.strip().lower().startswith("equal"):
            return Drop("nothing gained", candidate.instruction)
        return replace(candidate, kind=candidate.ask.operation)

    def request(self, candidate: Candidate, seeds: Sequence[Task], draw: random.Random) -> Ask:
        """The task itself."""
        return Ask(f"Carry out this task.\n\nTask: {candidate.instruction}\n\nAnswer:", (), "answer")

    def filled(self, candidate: Candidate, answer: str, task: Task) -> Task | Drop:
        """Eliminated where the answer excuses itself shortly (second rule) or has no word of content (third)."""
        output, words = answer.strip(), words_of(answer)
        if SORRY in words and len(words) < EXCUSE_WORDS:
            return Drop("the answer is an excuse", output)
        if not set(words) - FUNCTION_WORDS:
            return Drop("the answer has no word of content", output)
        return replace(task, output=output)


def _latest(seeds: Sequence[Task], made: Sequence[Task]) -> dict[str, Task]:
    """The last version of each seed. A task's id begins with its seed's, and a slash."""
    latest = {seed.id: seed for seed in seeds}
    for task in made:
        latest[task.id.rpartition("/")[0]] = task
    return latest
