"""Beam search: the likeliest sequences that can be found by keeping the best few at every length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nachim.infer.engine import Engine
from nachim.infer.request import MOST_TOP, Completion, FinishReason, Sampling
from nachim.spec import UserError


@dataclass(frozen=True)
class Beam:
    """Tokens generated so far, and the log-probability of each."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason = "length"

    @property
    def total(self) -> float:
        """Log-probability of all, nat."""
        return sum(self.logprobs)

    def score(self, penalty: float) -> float:
        """The total over the length to the power of `penalty` (arXiv 1609.08144, sec. 7, without its constants)."""
        return self.total / len(self.tokens) ** penalty

    def longer(self, token: int, logprob: float, ends: frozenset[int]) -> Beam:
        """With one token more."""
        return Beam((*self.tokens, token), (*self.logprobs, logprob), "stop" if token in ends else "length")


def search(
    engine: Engine,
    prompt: str | Sequence[int],
    beams: int,
    max_tokens: int,
    n: int = 1,
    length_penalty: float = 1.0,
) -> list[Completion]:
    """The `n` best continuations that `beams` beams find, the best first, scored by `Beam.score`.

    As transformers does it: a sequence that ends is kept if it is among the best `beams` of its length; the search is
    over at `max_tokens`, or when no running beam scores above the worst of `beams` that ended. Every beam is a request
    of one token, whose whole blocks are found in the prefix cache. Raises UserError for numbers out of range and while
    the engine serves others.
    """
    if not 1 <= n <= beams <= MOST_TOP // 2:
        raise UserError(f"beams is {beams} and n {n}; they must be whole numbers, n at most beams, beams at most 64")
    if not engine.idle:
        raise UserError("the engine is serving requests: search for beams before or after them")
    tokens = engine.encode(prompt)
    length = Sampling(max_tokens=max_tokens).max_tokens
    live, ended = [Beam()], list[Beam]()
    for _ in range(min(length, engine.limit - len(tokens))):
        live, found = _grown(live, _asked(engine, tokens, live, 2 * beams), beams, engine.loaded.ends)
        ended = sorted(ended + found, key=lambda beam: -beam.score(length_penalty))[:beams]
        worst = ended[-1].score(length_penalty) if len(ended) == beams else None
        if worst is not None and max(beam.score(length_penalty) for beam in live) <= worst:
            live = []
            break
    best = sorted(ended + live, key=lambda beam: -beam.score(length_penalty))[:n]
    return [_completion(engine, tokens, number, beam) for number, beam in enumerate(best)]


def _asked(engine: Engine, prompt: tuple[int, ...], live: list[Beam], count: int) -> list[dict[int, float]]:
    """The likeliest tokens after each beam, with their log-probabilities."""
    sampling = Sampling(max_tokens=1, temperature=0.0, top_logprobs=min(count, engine.model.spec.vocab_size))
    numbers = [engine.add(prompt + beam.tokens, sampling) for beam in live]
    found: dict[int, dict[int, float]] = {}
    while not engine.idle:
        found |= {chunk.request: chunk.top[0] for chunk in engine.step()}
    return [found[number] for number in numbers]


def _grown(
    live: list[Beam], after: list[dict[int, float]], beams: int, ends: frozenset[int]
) -> tuple[list[Beam], list[Beam]]:
    """The best `beams` sequences one token longer that go on, and those among the best `beams` that end."""
    longer = [beam.longer(*one, ends) for beam, top in zip(live, after, strict=True) for one in top.items()]
    best = sorted(longer, key=lambda beam: -beam.total)[: 2 * beams]
    ended = [beam for beam in best[:beams] if beam.finish_reason == "stop"]
    return [beam for beam in best if beam.finish_reason != "stop"][:beams], ended


def _completion(engine: Engine, prompt: tuple[int, ...], number: int, beam: Beam) -> Completion:
    text = "" if engine.tokenizer is None else engine.tokenizer.decode(list(beam.tokens))
    return Completion(0, number, prompt, beam.tokens, text, beam.finish_reason, beam.logprobs)
