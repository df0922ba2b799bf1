"""Who answers prompts: one protocol, and the writer that is a checkpoint on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nachim.data.shards import digest, digest_of_file
from nachim.infer.engine import Engine
from nachim.infer.request import Completion, Sampling
from nachim.infer.template import ChatTemplate, template_in
from nachim.model.hf.checkpoint import ORIGIN
from nachim.model.weights import CHECKPOINT, fingerprint, latest
from nachim.spec import UserError


@dataclass(frozen=True)
class Asked:
    """A prompt, how its answer is drawn, and where it ends."""

    prompt: str
    seed: int
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What was answered, whether it was `cut` at its limit of tokens, and what it took: tokens read and written, and
    the reasons for which it was asked again."""

    text: str
    cut: bool
    prompt_tokens: int
    tokens: int
    retries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """No answer: the `reason` it is counted under, what is particular to this one, and the attempts before the last."""

    reason: str
    about: str = ""
    retries: tuple[str, ...] = ()


class Writer(Protocol):
    """Answers prompts, several at once: at most `together`. `name` stands in the provenance of what it wrote."""

    name: str
    together: int

    def write(self, asked: Sequence[Asked], tick: Callable[[float], None]) -> list[Answer | Failed]:
        """An answer to each prompt, or why there is none, in order; `tick` hears the share done."""


class LocalWriter:
    """A checkpoint, through the engine. With a chat template among its files a prompt is a message of a user.

    The same prompts and seeds give the same answers, whatever is asked beside them.
    """

    def __init__(self, folder: Path, dtype: str = "float32", context: int | None = None, together: int = 64) -> None:
        self.together = together
        self.engine = Engine(folder, dtype, context=context, most=together)
        if self.engine.tokenizer is None:
            raise UserError(f"{folder} has no tokenizer.json: a writer of text needs one")
        origin = folder / ORIGIN
        self.template: ChatTemplate | None = template_in(origin if origin.is_dir() else folder)
        self.name = f"{folder.resolve().name}@{_weights(folder)[:12]}"

    def write(self, asked: Sequence[Asked], tick: Callable[[float], None]) -> list[Answer | Failed]:
        """All prompts at once; one that is longer than the context fails, and no other by it."""
        found: dict[int, Answer | Failed] = {}
        waiting = {}
        for place, one in enumerate(asked):
            try:
                waiting[place] = self.engine.served[self.engine.add(self._ids(one.prompt), _sampling(one))]
            except UserError as error:
                found[place] = Failed("the prompt does not fit", str(error))
        while not self.engine.idle:
            self.engine.step()
            tick(1 - len(self.engine.served) / len(asked))
        for place, served in waiting.items():
            found[place] = _answer(served.best()[0].completion())
        return [found[place] for place in range(len(asked))]

    def _ids(self, prompt: str) -> list[int]:
        assert self.engine.tokenizer is not None
        if self.template is None:
            return list(self.engine.tokenizer.encode(prompt).ids)
        said = self.template.render([{"role": "user", "content": prompt}])
        return list(self.engine.tokenizer.encode(said, add_special_tokens=False).ids)


def _sampling(one: Asked) -> Sampling:
    return Sampling(
        max_tokens=one.max_tokens, temperature=one.temperature, top_p=one.top_p, seed=one.seed, stop=one.stop
    )


def _answer(found: Completion) -> Answer | Failed:
    if found.finish_reason in ("error", "abort"):
        return Failed("no token could follow", found.text)
    return Answer(found.text, found.finish_reason == "length", len(found.prompt), len(found.tokens))


def _weights(folder: Path) -> str:
    """A hash of the weights: of a run's newest checkpoint, or of a checkpoint's files."""
    if latest(folder / CHECKPOINT) is not None:
        return fingerprint(folder)
    return digest([digest_of_file(path) for path in sorted(folder.glob("*.safetensors"))])
