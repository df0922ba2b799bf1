"""The engine: requests in, tokens out, step by step."""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nachim.infer.folder import Loaded, opened
from nachim.infer.pages import GONE
from nachim.infer.prefix import hashes
from nachim.infer.reading import Reading
from nachim.infer.request import SEEDS, Chunk, Completion, Constraint, Request, Sampling
from nachim.infer.runner import Runner, Work
from nachim.infer.sample import likeliest_of
from nachim.infer.schedule import Scheduler
from nachim.infer.sequence import Sequence as Seq
from nachim.infer.served import Sample, Served
from nachim.infer.speculate import Drafter, accepted, drafter_of
from nachim.infer.store import Store
from nachim.infer.text import Text
from nachim.spec import UserError
from nachim.spec.cached import BLOCK, Cached

PAGE = 8
"""Tokens of a page: half of one is what a sequence wastes on average."""
SHARE = 0.8
"""Of the seconds that a pass gave to generating samples, those that it may give to a block beside them."""


class Engine:
    """Serves many requests at once. What a request gets does not depend on what else is served.

    `folder` is a run or a Hugging Face checkpoint, or what `opened` gave. The cache has room for `cache_tokens` tokens
    of all sequences together; prompts are read in blocks of `block`, and about `budget` tokens a step, by at most
    `most` samples at once. With `cache` "int8" or "int4" keys and values are kept in so many bits: more tokens in the
    same bytes, at other numbers. `context` is the longest sequence, that of the training unless given. `draft` guesses
    tokens for the model to check: "ngram" from the text so far, "mtp" by the model's own further head, or the folder of
    a smaller model; `draft_tokens` at a time. `prefixes` keeps what was computed of prompts for others that begin
    alike: at most `states` blocks where layers have states. Without `invariant`, torch's own kernels are used: the last
    bits of a request then depend on what it shares a step with.
    """

    def __init__(
        self,
        folder: Path | str | Loaded,
        dtype: str = "float32",
        *,
        device: str = "cpu",
        cache: Cached | None = None,
        cache_tokens: int = 32_768,
        block: int = BLOCK,
        budget: int = 512,
        most: int = 256,
        context: int | None = None,
        draft: str | Path | Loaded | None = None,
        draft_tokens: int = 4,
        prefixes: bool = True,
        states: int = 64,
        invariant: bool = True,
    ) -> None:
        sizes = {"cache_tokens": cache_tokens, "block": block, "budget": budget, "most": most}
        for name, value in sizes.items():
            if type(value) is not int or value < 1:
                raise UserError(f"{name} is {value!r}; it must be a whole number above 0")
        if block % PAGE:
            raise UserError(f"block is {block}; it must be a multiple of {PAGE}, the tokens of a page")
        loaded = folder if isinstance(folder, Loaded) else opened(folder, dtype)
        self.loaded, self.model = loaded, loaded.model.to(device)
        self.tokenizer = loaded.tokenizer
        fixed = self.model.spec.cached_context
        if context is not None and fixed is not None and context > fixed:
            raise UserError(
                f"context is {context}; beyond {fixed} tokens this model's rotary frequencies follow the length, and "
                f"keys in a cache would stay as they were turned: give at most {fixed}"
            )
        ends = (cache_tokens, loaded.context if context is None else context, fixed)
        self.limit = min(end for end in ends if end is not None)
        weight = self.model.embedding.weight
        self.store = Store(self.model.spec, cache_tokens, PAGE, weight.dtype, weight.device, cache, block)
        self.runner = Runner(self.model, self.store, invariant)
        kept = states if self.runner.stateful else None
        self.scheduler = Scheduler(self.store.pools, PAGE, block, budget, most, kept=kept, packing=self.store.packing)
        self.block, self.prefixes, self.invariant = block, prefixes, invariant
        self.drafter: Drafter | None = drafter_of(draft, self, draft_tokens)
        self.served: dict[int, Served] = {}
        self._ids = itertools.count()

    def encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """A prompt as token ids. Raises UserError for one that cannot be served."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise UserError("the model's folder has no tokenizer.json: give prompts as lists of token ids")
            prompt = self.tokenizer.encode(prompt).ids
        vocab = self.model.spec.vocab_size
        tokens = tuple(prompt)
        if not tokens:
            raise UserError("the prompt is empty: give at least one token to go on from")
        wrong = next((token for token in tokens if type(token) is not int or not 0 <= token < vocab), None)
        if wrong is not None:
            raise UserError(f"the prompt holds {wrong!r}, which is no token id: they are 0 to {vocab - 1}")
        if len(tokens) >= self.limit:
            raise UserError(
                f"the prompt has {len(tokens)} tokens; with one generated at most {self.limit} fit the context and the "
                "cache: shorten it, or open the engine with a larger context or cache_tokens"
            )
        return tokens

    def add(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        priority: int = 0,
        constraint: Constraint | None = None,
    ) -> int:
        """Queue a request; its number. Raises UserError for one that cannot be served, the others untouched."""
        sampling = Sampling() if sampling is None else sampling
        sampling.check_tokens(self.model.spec.vocab_size)
        if sampling.stop and self.tokenizer is None:
            raise UserError("stop strings need a tokenizer, and the model's folder has none: give stop_tokens")
        if sampling.samples > self.scheduler.most:
            raise UserError(
                f"the request wants {sampling.samples} samples; the engine serves {self.scheduler.most} at once"
            )
        tokens = self.encode(prompt)
        request = Request(next(self._ids), tokens, sampling.seeded(secrets.randbelow(SEEDS)), priority, constraint)
        served = Served(request, self.loaded.ends, self.limit)
        rank = self.scheduler.rank(priority)
        sequence = Seq(request.id, 0, list(tokens), len(tokens), rank, width=sampling.samples)
        if self.prefixes and not sampling.prompt_logprobs:
            sequence.keys = hashes(tokens, self.block)
        sequence.extra = Sample(served, sequence, Text(self.tokenizer, sampling.stop), constraint)
        served.samples.append(sequence.extra)
        self.served[request.id] = served
        self.scheduler.add(sequence)
        return request.id

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self.served

    def abort(self, request: int) -> None:
        """End a request now; what it held is free. A number that is not being served is left alone."""
        served = self.served.pop(request, None)
        if served is not None:
            for sample in served.samples:
                self._leave(sample, "abort")

    def _leave(self, sample: Sample, reason: Any = None) -> None:
        """Free what a sample holds, unless it had ended."""
        if reason is not None and sample.finish_reason is not None:
            return
        sample.finish_reason = reason or sample.finish_reason
        self.scheduler.remove(sample.sequence)
        if self.drafter is not None:
            self.drafter.forget(sample.sequence)

    def step(self) -> list[Chunk]:
        """Do one pass of the model; what it says of the requests in it."""
        if self.drafter is not None:
            self.drafter.propose([held.extra for held in self.scheduler.running if not held.prefilling])
        plan = self.scheduler.plan()
        for copy in plan.copies:
            self.store.copy(*copy)
        began, moved, seconds = time.thread_time(), list[Sample](), math.inf
        if plan.rows:
            moved = self._rows([Work(*row) for row in plan.rows])
            seconds = SHARE * (time.thread_time() - began)
        for block in plan.blocks:
            moved += self._block(*block, seconds)
        return self._tell(moved)

    def _block(self, sequence: Seq, begin: int, end: int, seconds: float) -> list[Sample]:
        """Read a block of a prompt; the samples that got their first token by it.

        One that is not the first goes through as many layers as `seconds` are likely to last for, others later.
        """
        if sequence.computed < begin:  # the block before it stands between two layers
            return []
        if sequence.reading is None:
            sequence.reading = Reading(self.runner.layers(sequence, begin, end), self.model.spec.n_layers)
        x_1TD = sequence.reading.go(seconds if begin else math.inf)
        if x_1TD is None:
            return []
        sequence.reading = None
        if self.drafter is not None:
            self.drafter.read(sequence, begin, x_1TD)
        self._pack(sequence, end)
        if sequence.keys and end - begin == self.block and begin % self.block == 0:
            self.scheduler.keep(sequence, begin)
        self.scheduler.done(sequence, end)
        served = sequence.extra.served
        fresh = len(sequence.tokens) == sequence.n_prompt
        if fresh and served.request.sampling.prompt_logprobs:
            served.score_prompt(self.runner.logits(x_1TD), begin)
        if end < sequence.n_prompt or not fresh:
            return []
        logits_1V = self.runner.logits(x_1TD[:, -1:])
        best = likeliest_of(logits_1V)[0]
        samples = [sequence.extra, *(self._fork(sequence, number) for number in range(1, sequence.width))]
        for sample in samples:
            _next(sample, logits_1V[0], best)
        return samples

    def _fork(self, sequence: Seq, number: int) -> Sample:
        first: Sample = sequence.extra
        forked = self.scheduler.fork(sequence, number)
        constraint = None if first.constraint is None else first.constraint.fork()
        forked.extra = Sample(
            first.served, forked, Text(self.tokenizer, first.served.request.sampling.stop), constraint
        )
        first.served.samples.append(forked.extra)
        if self.drafter is not None:
            self.drafter.fork(sequence, forked)
        return forked.extra

    def _rows(self, works: list[Work]) -> list[Sample]:
        """Read generated tokens and drafts; the samples that got tokens by it."""
        x_R1D, after = self.runner.rows(works)
        # tokens that stood before a pre-emption are known: nobody asks what follows them
        known = [max(0, len(work.sequence.tokens) - 1 - work.begin) for work in works]
        ends = list(itertools.accumulate(work.end - work.begin for work in works))
        begins = [end - work.end + work.begin + first for end, work, first in zip(ends, works, known, strict=True)]
        wanted = [row for first, end in zip(begins, ends, strict=True) for row in range(first, end)]
        logits_RV = x_R1D[:0, 0]
        if wanted:
            wanted_R1D = x_R1D if len(wanted) == len(x_R1D) else x_R1D[torch.tensor(wanted, device=x_R1D.device)]
            logits_RV = self.runner.logits(wanted_R1D)
        best, moved, read = likeliest_of(logits_RV), [], 0
        for work, states, begin, end in zip(works, after, begins, ends, strict=True):
            sequence, before, asked = work.sequence, len(work.sequence.tokens), max(0, end - begin)
            if asked:
                self._take(sequence.extra, logits_RV[read : read + asked], best[read : read + asked])
                moved.append(sequence.extra)
                read += asked
            length = min(work.end, max(before, len(sequence.tokens) - 1))
            if states:
                sequence.states = states[length - work.begin - 1]
            if self.drafter is not None:
                stream = x_R1D[end - work.end + work.begin :][: length - work.begin]
                self.drafter.read(sequence, work.begin, stream.transpose(0, 1))
            self._pack(sequence, length)
            self.scheduler.done(sequence, length)
            self.scheduler.trim(sequence)
        return moved

    def _pack(self, sequence: Seq, length: int) -> None:
        """Pack the blocks that are whole now that `length` tokens were read."""
        for pack in self.scheduler.pack(sequence, length):
            self.store.pack(*pack)

    def _take(self, sample: Sample, logits_RV: Tensor, best: list[tuple[int, float]]) -> None:
        """Check the drafts of a sample, one row of logits each, and take those that hold and one token more.

        `best` is the likeliest token of each row and its logit.
        """
        drafts, laws = sample.sequence.drafts, [] if self.drafter is None else self.drafter.laws(sample.sequence)
        for place, likeliest in enumerate(best):
            draft = drafts[place] if place < len(best) - 1 else None
            q_V = laws[place] if draft is not None and laws else None
            token = _next(sample, logits_RV[place], likeliest, draft, q_V)
            if self.drafter is not None and draft is not None:
                self.drafter.guessed += 1
                self.drafter.held += token == draft
            if sample.finish_reason is not None or token != draft:
                break
        sample.sequence.drafts = []

    def _tell(self, moved: Iterable[Sample]) -> list[Chunk]:
        """Chunks of the samples that moved; what has ended leaves."""
        chunks = []
        for sample in moved:
            served = sample.served
            if sample.finish_reason is not None:
                self._leave(sample)
            streamed = served.request.sampling.best_of is None
            if streamed:
                chunks.append(sample.chunk())
            if served.finished and self.served.pop(served.request.id, None) is not None and not streamed:
                chunks += [sample.chunk() for sample in served.best()]
        return chunks

    def renew(self) -> None:
        """Go on with weights that were changed in place, as training does: what was kept of prompts is forgotten.

        Raises UserError while requests are served: half of their tokens would be of other weights.
        """
        if not self.idle:
            raise UserError(f"{len(self.served)} requests are being served: finish or abort them before weights change")
        while self.scheduler.prefixes.forget():
            pass
        self.runner.renew()

    def facts(self) -> dict[str, Any]:
        """What the cache holds now, and what was done since the engine was opened, as plain JSON values.

        `waste` is the share of slots in the pages of running samples that hold no token.
        """
        scheduler, prefixes = self.scheduler, self.scheduler.prefixes
        groups = [(held, group) for held in scheduler.running for group in held.tables]
        slots = sum(len(held.tables[group]) - held.tables[group].count(GONE) for held, group in groups) * PAGE
        lost = sum(held.tables[group].count(GONE) for held, group in groups) * PAGE
        tokens = sum(held.computed for held, _ in groups) - lost
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "cache_bytes": self.store.nbytes,
            "used_bytes": self.store.used_bytes(),
            "waste": 1 - tokens / slots if slots else 0.0,
            "passes": scheduler.passes,
            "preempted": scheduler.preempted,
            "prefix_blocks": len(prefixes.blocks),
            "prefix_hits": prefixes.found,
            "drafts_guessed": 0 if self.drafter is None else self.drafter.guessed,
            "drafts_held": 0 if self.drafter is None else self.drafter.held,
        }

    def generate(self, prompts: Sequence[str | Sequence[int]], **sampling: Any) -> list[Completion]:
        """The completion of each prompt, in order; `sampling` are the fields of `Sampling`.

        Each prompt without a seed draws its own. With `n` above 1 the others are in `samples`. Raises UserError for a
        prompt that cannot be served, before any is.
        """
        return self.serve(prompts, Sampling(**sampling))

    def serve(self, prompts: Sequence[str | Sequence[int]], sampling: Sampling) -> list[Completion]:
        """As `generate`, of sampling that was checked."""
        if isinstance(prompts, str):
            raise UserError("prompts is one string: give a list of prompts")
        encoded = [self.encode(prompt) for prompt in prompts]
        served = [self.served[self.add(prompt, sampling)] for prompt in encoded]
        while any(one.request.id in self.served for one in served):
            self.step()
        return [completed(one) for one in served]


def completed(served: Served) -> Completion:
    """The completion of a request that has ended."""
    samples = tuple(sample.completion() for sample in served.best())
    return samples[0] if len(samples) == 1 else replace(samples[0], samples=samples)


def _next(
    sample: Sample,
    logits_V: Tensor,
    best: tuple[int, float],
    draft: int | None = None,
    q_V: Tensor | None = None,
) -> int | None:
    """Choose the next token of a sample and take it in; None where there is none to choose (NaN, or none is allowed).

    `best` is the likeliest token by its logits and that logit: a greedy request without wishes looks no further.
    """
    sampling = sample.served.request.sampling
    if q_V is not None:
        wanted_V = sample.adjusted(logits_V)
        token = accepted(sample, wanted_V, draft, q_V) if math.isfinite(wanted_V.max().item()) else None
    elif sample.constraint is None and sampling.plain and sampling.greedy:
        token = best[0] if math.isfinite(best[1]) else None
    else:
        token = sample.choose(logits_V)
    if token is None:
        sample.finish_reason = "error"
        return None
    sample.take(token, logits_V)
    return token
