"""A request while it is served, and each of its samples: what was said so far, and when it ends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nachim.infer.request import Chunk, Completion, Constraint, FinishReason, Request
from nachim.infer.sample import Stream, adjusted, draw, law, likeliest, uniform
from nachim.infer.sequence import Sequence
from nachim.infer.text import Text


@dataclass(eq=False)
class Sample:
    """One sample of a request; `sequence` holds its tokens, the prompt's first."""

    served: Served
    sequence: Sequence
    text: Text
    constraint: Constraint | None
    logprobs: list[float] = field(default_factory=list)
    top: list[dict[int, float]] = field(default_factory=list)
    total: float = 0.0
    """Log-probability of all its tokens, nat."""
    finish_reason: FinishReason | None = None
    told: int = 0
    """Tokens that were given out."""

    @property
    def tokens(self) -> list[int]:
        """What was generated."""
        return self.sequence.tokens[self.sequence.n_prompt :]

    def adjusted(self, logits_V: Tensor) -> Tensor:
        """Logits of the next token as the request wants them."""
        allowed_V = None if self.constraint is None else self.constraint.allowed()
        tokens, n_prompt = self.sequence.tokens, self.sequence.n_prompt
        return adjusted(logits_V, tokens, n_prompt, self.served.request.sampling, allowed_V)

    def choose(self, logits_V: Tensor) -> int | None:
        """The next token, by the request's own random numbers; None where none may follow, or a logit is no number.

        Under a constraint a token is drawn as if there were none. If it is allowed, it is the token, and no mask is
        computed; if not, one is drawn from those allowed. A token x that is allowed comes with probability
        p(x) + (1 - p(allowed)) p(x) / p(allowed) = p(x) / p(allowed), as it should. Not so where a law is cut off: what
        is cut off depends on what is allowed.
        """
        sampling, tokens = self.served.request.sampling, self.sequence.tokens
        wanted_V = adjusted(logits_V, tokens, self.sequence.n_prompt, sampling)
        if self.constraint is None:
            return self._drawn(wanted_V, "token")
        if sampling.whole:
            token = self._drawn(wanted_V, "token")
            if token is not None and self.constraint.allows(token):
                return token
        among_N = self.constraint.allowed().nonzero()[:, 0].to(logits_V.device)
        place = self._drawn(wanted_V[among_N], "residual")
        return None if place is None else int(among_N[place])

    def _drawn(self, logits_N: Tensor, stream: Stream) -> int | None:
        """The place of one of some tokens, drawn from their law; None where there is none, or no finite logit."""
        sampling = self.served.request.sampling
        if not len(logits_N) or not math.isfinite(logits_N.max().item()):
            return None
        if sampling.greedy:
            return int(logits_N.argmax())
        return draw(law(logits_N, sampling), uniform(sampling, self.sequence.sample, len(self.sequence.tokens), stream))

    def take(self, token: int, logits_V: Tensor) -> None:
        """Take in a token that was chosen; `logits_V` are the model's own."""
        sampling = self.served.request.sampling
        self.sequence.tokens.append(token)
        if sampling.logprobs or sampling.top_logprobs or sampling.best_of is not None:
            logprobs_V = F.log_softmax(logits_V, -1)
            self.logprobs.append(logprobs_V[token].item())
            self.total += self.logprobs[-1]
            if sampling.top_logprobs:
                self.top.append(likeliest(logprobs_V, sampling.top_logprobs))
        if self.constraint is not None and token not in self.served.ends:
            self.constraint.accept(token)
        self._end(token)
        if self.finish_reason is None or token not in self.served.ends:
            self.text.add(token)
            if self.text.stopped:
                self.finish_reason = "stop"

    def _end(self, token: int) -> None:
        sampling = self.served.request.sampling
        if (token in self.served.ends and not sampling.ignore_eos) or token in sampling.stop_tokens:
            self.finish_reason = "stop"
        elif len(self.tokens) >= sampling.max_tokens or len(self.sequence.tokens) >= self.served.limit:
            self.finish_reason = "length"

    def chunk(self) -> Chunk:
        """What is new since the last one."""
        tokens, first = tuple(self.tokens[self.told :]), self.told
        self.told += len(tokens)
        text = self.text.show() if self.finish_reason is None else self.text.close()
        wanted = self.served.request.sampling.logprobs
        return Chunk(
            self.served.request.id,
            self.sequence.sample,
            tokens,
            text,
            tuple(self.logprobs[first:]) if wanted else (),
            tuple(self.top[first:]),
            self.finish_reason,
        )

    def completion(self) -> Completion:
        """All of it."""
        request = self.served.request
        return Completion(
            request.id,
            self.sequence.sample,
            request.prompt,
            tuple(self.tokens),
            self.text.whole,
            self.finish_reason or "abort",
            tuple(self.logprobs) if request.sampling.logprobs else None,
            tuple(self.top) if request.sampling.top_logprobs else None,
            tuple(self.served.prompt_logprobs) if request.sampling.prompt_logprobs else None,
        )


@dataclass(eq=False)
class Served:
    """A request, its samples, and the limits it is served under."""

    request: Request
    ends: frozenset[int]
    limit: int
    """Tokens, the prompt's counted, that the context and the cache have room for."""
    samples: list[Sample] = field(default_factory=list)
    prompt_logprobs: list[float | None] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether every sample has ended."""
        wanted = self.request.sampling.samples
        return len(self.samples) == wanted and all(sample.finish_reason for sample in self.samples)

    def best(self) -> list[Sample]:
        """The `n` samples to give back: all, or those of the highest mean log-probability, the best first."""
        sampling = self.request.sampling
        if sampling.best_of is None:
            return self.samples
        ranked = sorted(self.samples, key=lambda sample: -sample.total / max(1, len(sample.tokens)))
        return ranked[: sampling.n]

    def score_prompt(self, logits_TV: Tensor, begin: int) -> None:
        """Log-probabilities of the prompt's tokens after the `begin` first, from the logits of the tokens before."""
        tokens = self.request.prompt
        self.prompt_logprobs = [None, *self.prompt_logprobs[1 : begin + 1]]  # a prompt may be read again
        wanted = torch.tensor(tokens[begin + 1 : begin + 1 + len(logits_TV)], device=logits_TV.device)
        found = F.log_softmax(logits_TV[: len(wanted)], -1).gather(1, wanted[:, None])
        self.prompt_logprobs.extend(found[:, 0].tolist())
