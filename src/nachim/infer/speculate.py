"""Guessing tokens cheaply, so that one pass of the model checks several: exact, whatever the guesses are.

A guess without a law of its own (from the text so far, or a greedy one) holds where it is the token that the model
chooses there with the request's own random number: tokens are then those without any guessing. A guess drawn from a law
q is kept with probability min(1, p/q), and where it is not the token comes from max(0, p - q): it is then distributed
as p (arXiv 2211.17192, theorem 3.5 and sec. 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence as List
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nachim.infer.sample import adjusted, draw, law, residual, uniform
from nachim.infer.sequence import Sequence
from nachim.infer.served import Sample
from nachim.spec import UserError

if TYPE_CHECKING:
    from nachim.infer.engine import Engine
    from nachim.infer.folder import Loaded

LONGEST, SHORTEST = 4, 2
"""Tokens at the end of a text that are looked for earlier in it, the longer first."""


class Drafter:
    """Base of those who guess: `propose` sets `drafts` of sequences, the rest tells them what became certain."""

    def __init__(self, count: int) -> None:
        if type(count) is not int or count < 1:
            raise UserError(f"draft_tokens is {count!r}; it must be a whole number above 0")
        self.count = count
        self._laws: dict[Sequence, list[Tensor]] = {}
        self.guessed = self.held = 0

    def room(self, sample: Sample) -> int:
        """How many guesses a sample may use: one token always follows them."""
        sampling, sequence = sample.served.request.sampling, sample.sequence
        left = min(sampling.max_tokens - len(sample.tokens), sample.served.limit - len(sequence.tokens))
        return max(0, min(self.count, left - 1)) if sequence.computed == len(sequence.tokens) - 1 else 0

    def propose(self, samples: List[Sample]) -> None:
        """Set the `drafts` of samples that generate."""
        raise NotImplementedError

    def laws(self, sequence: Sequence) -> list[Tensor]:
        """The laws [V] that its guesses were drawn from; none where they were not drawn."""
        return self._laws.pop(sequence, [])

    def guess(self, sample: Sample, logits_V: Tensor) -> int:
        """A guess from a law of its own, which is kept; greedy where the request is."""
        sequence, sampling = sample.sequence, sample.served.request.sampling
        tokens = sequence.tokens + sequence.drafts
        q_V = law(adjusted(logits_V, tokens, sequence.n_prompt, sampling), sampling)
        if sampling.greedy:
            return int(q_V.argmax())
        self._laws.setdefault(sequence, []).append(q_V)
        return draw(q_V, uniform(sampling, sequence.sample, len(tokens), "draft"))

    def read(self, sequence: Sequence, begin: int, x_1TD: Tensor) -> None:
        """The model read certain tokens from `begin` on; what its last block gave."""

    def fork(self, sequence: Sequence, forked: Sequence) -> None:
        """Another sample goes on from the same prompt."""

    def forget(self, sequence: Sequence) -> None:
        """A sample has ended."""
        self._laws.pop(sequence, None)


class NGram(Drafter):
    """What followed the last tokens where they stood before."""

    def propose(self, samples: List[Sample]) -> None:
        """Set the `drafts` of samples that generate."""
        for sample in samples:
            sample.sequence.drafts = followers(sample.sequence.tokens, self.room(sample))


def followers(tokens: List[int], count: int) -> list[int]:
    """Up to `count` tokens that followed the latest earlier place of the longest known end of `tokens`."""
    ids = np.asarray(tokens)
    for size in range(min(LONGEST, len(ids) - 1), SHORTEST - 1, -1):
        if not count:
            break
        windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
        found = np.flatnonzero((windows == ids[-size:]).all(1))
        if len(found):
            first = int(found[-1]) + size
            return ids[first : first + count].tolist()
    return []


class Heads(Drafter):
    """One token, by the model's own first module for multi-token prediction."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(1)
        if engine.model.spec.mtp is None:
            raise UserError("draft is 'mtp', and the model has no module for multi-token prediction")
        self.runner, self.model = engine.runner, engine.model
        engine.prefixes = False  # it must see the stream of every token
        self._caches: dict[Sequence, tuple[object, list[Tensor], int]] = {}

    def propose(self, samples: List[Sample]) -> None:
        """Set the `drafts` of samples that generate."""
        for sample in samples:
            sequence = sample.sequence
            cache, streams, read = self._caches[sequence]
            if not self.room(sample) or not streams or read < len(sequence.tokens) - 1:
                continue
            x_1TD = torch.cat(streams, 1)
            following = sequence.tokens[read - x_1TD.shape[1] + 1 : read + 1]
            logits_V = self.runner.further(x_1TD, following, cache)
            self._caches[sequence] = (cache, [], read)
            sequence.drafts = [self.guess(sample, logits_V)]

    def read(self, sequence: Sequence, begin: int, x_1TD: Tensor) -> None:
        """Keep the stream of tokens that are certain, unless it is kept: a sequence may have begun again."""
        cache, streams, read = self._caches.get(sequence) or (self.model.start(1), [], 0)
        new = begin + x_1TD.shape[1] - read
        if new > 0:
            self._caches[sequence] = (cache, [*streams, x_1TD[:, -new:]], read + new)

    def fork(self, sequence: Sequence, forked: Sequence) -> None:
        """Another sample goes on from the same prompt, of which the module has read nothing yet."""
        _, streams, read = self._caches[sequence]
        self._caches[forked] = (self.model.start(1), list(streams), read)

    def forget(self, sequence: Sequence) -> None:
        """A sample has ended."""
        super().forget(sequence)
        self._caches.pop(sequence, None)


class Small(Drafter):
    """A smaller model with the same tokens, and a cache of its own."""

    def __init__(self, engine: Engine, small: Loaded, count: int) -> None:
        from nachim.infer.runner import Runner
        from nachim.infer.store import Store

        super().__init__(count)
        theirs, ours = small.model.spec.vocab_size, engine.model.spec.vocab_size
        if theirs != ours:
            raise UserError(f"the draft model has {theirs} tokens and the model {ours}: they must have the same")
        self.block, page = engine.block, engine.store.page
        tokens = page * max((len(pool.owners) for pool in engine.store.pools.values()), default=1)
        weight = small.model.embedding.weight
        self.store = Store(small.model.spec, tokens, page, weight.dtype, weight.device)
        self.runner = Runner(small.model, self.store, engine.invariant)
        self.limit = small.context
        self._own: dict[Sequence, Sequence] = {}
        self._after: dict[Sequence, dict[int, list[dict[str, Tensor]]]] = {}

    def propose(self, samples: List[Sample]) -> None:
        """Set the `drafts` of samples that generate: the small model reads all of them together, token by token."""
        counts = {sample: self.room(sample) for sample in samples}
        active = [sample for sample, count in counts.items() if count and self._ready(sample.sequence, count)]
        for turn in range(self.count):
            active = [sample for sample in active if turn < counts[sample]]
            if not active:
                break
            works = []
            for sample in active:
                own = self._own[sample.sequence]
                own.tokens = sample.sequence.tokens + sample.sequence.drafts
                works.append((own, own.computed, len(own.tokens)))
            for sample, logits_V in zip(active, self._read(works), strict=True):
                sample.sequence.drafts = [*sample.sequence.drafts, self.guess(sample, logits_V)]

    def _read(self, works: list[tuple[Sequence, int, int]]) -> list[Tensor]:
        """Logits [V] after the last token of each work."""
        from nachim.infer.runner import Work

        x_R1D, after = self.runner.rows([Work(*work) for work in works])
        ends = np.cumsum([end - begin for _, begin, end in works]) - 1
        for (own, begin, end), states in zip(works, after, strict=True):
            own.computed = end
            self._after[own].update(enumerate(states, begin + 1))
        return list(self.runner.logits(x_R1D[ends]))

    def _ready(self, sequence: Sequence, count: int) -> bool:
        """Read the prompt if it was not, go back behind guesses that were wrong; whether there is room to guess."""
        own = self._own.setdefault(sequence, Sequence(0, 0, [], sequence.n_prompt, (0, 0, 0)))
        states = self._after.setdefault(own, {})
        end = len(sequence.tokens) + count
        if self.limit is not None and end > self.limit:
            return False
        right = next((i for i, (a, b) in enumerate(zip(own.tokens, sequence.tokens)) if a != b), len(own.tokens))  # noqa: B905 - the longer of the two goes on
        right = min(right, own.computed, len(sequence.tokens) - 1)
        own.tokens = list(sequence.tokens)
        if right < own.computed and self.runner.stateful:
            own.states = states[right]
        own.computed = right
        self._after[own] = {}
        for group, pool in self.store.pools.items():
            table = own.tables.setdefault(group, [])
            lacking = max(0, -(-end // self.store.page) - len(table))
            if pool.free < lacking:
                return False
            table.extend(pool.take() for _ in range(lacking))
        while own.computed < sequence.n_prompt - 1:
            last = min(own.computed + self.block, sequence.n_prompt - 1)
            self.runner.block(own, own.computed, last)
            own.computed = last
        return True

    def forget(self, sequence: Sequence) -> None:
        """A sample has ended."""
        super().forget(sequence)
        own = self._own.pop(sequence, None)
        if own is not None:
            self._after.pop(own, None)
            for group, table in own.tables.items():
                self.store.pools[group].drop(table)


def accepted(sample: Sample, wanted_V: Tensor, draft: int, q_V: Tensor) -> int:
    """The draft, with probability min(1, p/q); else a token from what p has more than q."""
    sampling, sequence = sample.served.request.sampling, sample.sequence
    p_V, place = law(wanted_V, sampling), len(sequence.tokens)
    if uniform(sampling, sequence.sample, place, "accept") * q_V[draft] < p_V[draft]:
        return draft
    return draw(residual(p_V, q_V), uniform(sampling, sequence.sample, place, "residual"))


def drafter_of(draft: str | Path | Loaded | None, engine: Engine, count: int) -> Drafter | None:
    """Who guesses for an engine. Raises UserError for what cannot."""
    from nachim.infer.folder import Loaded, opened

    if draft is None:
        return None
    if draft == "ngram":
        return NGram(count)
    if draft == "mtp":
        return Heads(engine)
    small = draft if isinstance(draft, Loaded) else opened(draft, str(engine.store.dtype).removeprefix("torch."))
    return Small(engine, small, count)
