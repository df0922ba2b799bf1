"""The verb `nachim data synth`: new tasks from a few, written by a checkpoint or an endpoint, and filtered."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from nachim.app.view import TerminalView
from nachim.data.evolve import Evolve
from nachim.data.instruct import Method, SelfInstruct, Task, read_tasks
from nachim.data.novelty import WIDTH, Embed, hashed
from nachim.data.read import Report
from nachim.data.records import skipped
from nachim.data.shards import digest
from nachim.spec import UserError
from nachim.spec.disk import write_text

if TYPE_CHECKING:
    from nachim.lab.synthesis import Made, Synthesis
    from nachim.lab.writer import Writer

PAGE, TASKS = "synthesis.html", "tasks.jsonl.zst"
REASONS = 12
ENDS = {
    "count": "as many as were asked for",
    "budget": "the budget is spent; the same command with a larger one goes on",
    "barren": "the last rounds kept nothing: give other seeds, another writer, or looser limits",
}


@dataclass(frozen=True)
class Synthesise:
    """What both methods are told."""

    METHOD: ClassVar[Literal["self-instruct", "evol"]]

    seeds: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SEEDS.jsonl")]
    """Tasks to begin with, one JSON object a line: `instruction`, and if there are `id`, `input`, `output`."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder: `tasks.jsonl.zst`, `rounds/`, `dropped/` with the reasons, and a page."""
    count: int
    """Go on until there are at least so many new tasks; rounds are finished."""
    model: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder of the checkpoint that writes; with --endpoint the name of a model there (by default its first)."""
    endpoint: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """An OpenAI-compatible endpoint that writes, such as http://127.0.0.1:8000/v1; OPENAI_API_KEY is its key."""
    embed: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Take vectors from the mean hidden state of this checkpoint, in place of hashed words and pairs of words."""
    rouge: float = 0.7
    """Drop an instruction whose ROUGE-L with one of the pool is above this."""
    distance: float = 0.05
    """Drop an instruction whose vector lies less than this (1 - cosine) from one of the pool."""
    overlap: float = 0.8
    """Drop a task whose 5-word shingles have more than this Jaccard similarity with one of the pool."""
    per_round: int = 8
    """Prompts of a round: what a kill may cost."""
    temperature: float = 0.7
    """With which tasks are written; questions about them are answered at 0."""
    top_p: float = 1.0
    """Write from the likeliest tokens that have this share together."""
    max_tokens: int = 512
    """Tokens of an answer at most; an answer that is cut there is dropped."""
    seed: int = 0
    """Of the prompts and the draws: the same seed asks the same."""
    max_requests: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Begin no more requests than this, retries and earlier calls counted in."""
    max_total_tokens: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Stop once so many tokens were read and written; what is in flight then still counts."""
    in_flight: int = 8
    """Requests at once."""
    timeout: float = 60.0
    """Seconds that an endpoint has for an answer."""
    retries: int = 4
    """How often a request that failed in passing is sent again, after 1, 2, 4, ... seconds."""
    context: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Tokens of a prompt and its answer at most, for a checkpoint; by default those of its training."""
    json: bool = False
    """Print one JSON object: kept, came, dropped (by reason), rounds, ended, spent, generator, embedding."""

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was made, for a script and for a person."""
        from nachim.app.synth_page import write_page
        from nachim.lab.spending import Budget
        from nachim.lab.synthesis import Loop, Synthesis

        if self.count < 1 or self.in_flight < 1:
            raise UserError(f"--count {self.count} --in-flight {self.in_flight}: both must be at least 1")
        report = Report()
        tasks = read_tasks(self.seeds, report)
        view.stage("opening the writer")
        writer, (embedding, embed) = self._writer(), self._embed(tasks)
        spec = Synthesis(
            method=self.METHOD, generator=writer.name, tasks=digest([asdict(task) for task in tasks]),
            embedding=embedding, rouge=self.rouge, distance=self.distance, overlap=self.overlap,
            per_round=self.per_round, seed=self.seed, temperature=self.temperature, top_p=self.top_p,
            max_tokens=self.max_tokens,
        )  # fmt: skip
        view.stage("writing tasks")
        budget = Budget(self.max_requests, self.max_total_tokens)
        loop = Loop(spec, self.method(), tasks, writer, embed, self.out, budget, view.share, view.stopping)
        made = loop.run(self.count)
        found = {**told_of(made, spec), "seeds": len(tasks), "skipped": skipped(report)}
        write_text(self.out / "ledger.json", _json(found, made))
        write_page(self.out / PAGE, found, made.ledger)
        return found, "\n".join([*sentences(found, self.out), *report.notes()])

    def method(self) -> Method:
        """The method, as it was set."""
        raise NotImplementedError

    def _writer(self) -> Writer:
        if self.endpoint is not None:
            from nachim.lab.endpoint import EndpointWriter

            return EndpointWriter(self.endpoint, self.model, self.in_flight, self.timeout, self.retries)
        if self.model is None:
            raise UserError("nobody writes: give --model DIR, or --endpoint URL")
        from nachim.lab.writer import LocalWriter

        return LocalWriter(Path(self.model), context=self.context, together=self.in_flight)

    def _embed(self, tasks: list[Task]) -> tuple[str, Embed]:
        if self.embed is None:
            return f"hashed words and pairs, {WIDTH} buckets", hashed
        from nachim.lab.embed import MeanState

        state = MeanState(self.embed, [task.instruction for task in tasks])
        return state.name, state


@dataclass(frozen=True)
class SelfInstructed(Synthesise):
    """New tasks from lists of old ones (Self-Instruct, arXiv 2212.10560).

    Each prompt shows six of the seeds and two of those made before, and asks for eight more. An instruction that is new
    enough is asked whether it is classification, and an example of it is written: input then output, or label then
    input.

    Example: nachim data synth self-instruct seeds.jsonl --out tasks --count 500 --endpoint http://127.0.0.1:8000/v1
    """

    METHOD = "self-instruct"

    def method(self) -> Method:
        """Self-Instruct."""
        return SelfInstruct(per_round=self.per_round)


@dataclass(frozen=True)
class Evolved(Synthesise):
    """Harder and rarer tasks from old ones (Evol-Instruct, arXiv 2304.12244).

    Each task is rewritten by an operation drawn for it: a constraint more, deeper, more concrete, more steps of
    reasoning, an input to work on; or another task of the same field. What gains nothing, is an excuse, has no content
    or speaks of the prompt is eliminated, and its parent tried again. A rewritten task is like its parent: set --rouge
    and --distance by the page.

    Example: nachim data synth evol seeds.jsonl --out tasks --count 500 --model runs/qwen --rouge 0.95
    """

    METHOD = "evol"
    rouge: float = 0.95
    """Drop an instruction whose ROUGE-L with one of the pool, its parent too, is above this."""
    distance: float = 0.01
    """Drop an instruction whose vector lies less than this (1 - cosine) from one of the pool, its parent's too."""

    def method(self) -> Method:
        """Evol-Instruct."""
        return Evolve(per_round=self.per_round)


@dataclass(frozen=True)
class Synth:
    """Write new tasks for an assistant from a few, with a checkpoint or any OpenAI-compatible endpoint.

    Nothing is lost silently: every proposal is kept, with its provenance, or dropped for a reason that is counted.
    Killed at any time the same command goes on, and asks what it would have asked.

    Example: nachim data synth evol seeds.jsonl --out tasks --count 500 --endpoint http://127.0.0.1:8000/v1
    """

    how: Annotated[
        Annotated[SelfInstructed, tyro.conf.subcommand("self-instruct", prefix_name=False)]
        | Annotated[Evolved, tyro.conf.subcommand("evol", prefix_name=False)],
        tyro.conf.arg(name=""),
    ]

    @property
    def json(self) -> bool:
        """Whether one JSON object is wanted."""
        return self.how.json

    def run(self, view: TerminalView) -> tuple[dict[str, Any], str]:
        """Do it; what was made, for a script and for a person."""
        return self.how.run(view)


def told_of(made: Made, spec: Synthesis) -> dict[str, Any]:
    """What came of it, as plain JSON values."""
    ledger = made.ledger
    return {
        "kept": ledger.kept.rows,
        "came": ledger.came.rows,
        "dropped": {reason: count.rows for reason, count in sorted(ledger.dropped.items())},
        "rounds": len(made.shards),
        "ended": made.ended,
        "spent": made.spent.to_json(),
        "generator": spec.generator,
        "embedding": spec.embedding,
        "limits": {"rouge_l": spec.rouge, "distance": spec.distance, "overlap": spec.overlap},
        "method": spec.method,
    }


def sentences(found: dict[str, Any], out: Path) -> list[str]:
    """What a person reads at the end."""
    spent, most = found["spent"], sorted(found["dropped"].items(), key=lambda item: -item[1])
    lines = [
        f"{found['kept']:,} of {found['came']:,} proposals kept in {out / TASKS}, {found['rounds']} rounds: "
        f"{ENDS[found['ended']]}",
        *(f"  {count:,} dropped: {reason}" for reason, count in most[:REASONS]),
        f"{spent['requests']:,} requests to {found['generator']}: {spent['prompt_tokens']:,} tokens read, "
        f"{spent['tokens']:,} written",
    ]
    for what in ("retries", "failures"):
        if spent[what]:
            lines.append(f"  {what}: " + ", ".join(f"{count:,} {reason}" for reason, count in spent[what].items()))
    return [*lines, f"vectors: {found['embedding']}; look at {out / PAGE}"]


def _json(found: dict[str, Any], made: Made) -> str:
    import json

    return json.dumps({**found, "ledger": made.ledger.to_json()}, indent=1) + "\n"
