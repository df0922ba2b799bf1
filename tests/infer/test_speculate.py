"""Guesses change how fast tokens come, never which: bit for bit where greedy, in law where drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from nachim.infer.request import Sampling
from nachim.infer.sample import draw, law, uniform
from nachim.infer.speculate import accepted, followers
from nachim.spec import UserError
from tests.infer.test_engine import DRAWN, GREEDY, HYBRID
from tests.infer.tiny import PLAIN, alone, engine, loaded, prompts, said

SMALL = replace(PLAIN, n_layers=1)
STATE = replace(SMALL, attention=HYBRID.attention.parts[0], mtp=None)
LONG = GREEDY | {"max_tokens": 12}


def drafts(name: str, spec):
    """What `Engine` takes as `draft`."""
    models = {"small": SMALL, "stateful": STATE, "itself": spec}
    return loaded(models[name]) if name in models else name


@pytest.mark.parametrize(
    ("spec", "name"),
    [(PLAIN, "small"), (PLAIN, "itself"), (PLAIN, "mtp"), (PLAIN, "stateful"), (HYBRID, "small"), (HYBRID, "itself")],
)
def test_greedy_tokens_and_logprobs_are_the_same_bits(spec, name):
    asked = prompts(spec, 20, 33, 9)
    one = engine(spec, draft=drafts(name, spec), draft_tokens=3, cache_tokens=112)
    assert said(one.generate(asked, **LONG)) == alone(spec, asked, **LONG)
    told = one.facts()
    assert told["drafts_guessed"] > 0
    if name == "itself":
        assert told["drafts_held"] == told["drafts_guessed"]
    own = one.drafter.store if hasattr(one.drafter, "store") else one.store
    while one.scheduler.prefixes.forget():
        pass
    for pool in [*own.pools.values(), *one.store.pools.values()]:
        assert pool.free == len(pool.owners)


def test_guesses_from_the_text_leave_what_is_drawn_as_it_was():
    asked = prompts(PLAIN, 20, 33)
    options = LONG | DRAWN | {"n": 2, "logit_bias": {5: 50.0, 7: 50.0}}
    one = engine(draft="ngram")
    assert said(one.generate(asked, **options)) == alone(PLAIN, asked, **options)
    assert one.facts()["drafts_guessed"] > 0


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ([1, 2, 3, 4, 1, 2], [3, 4, 1]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2]),  # the latest place
        ([7, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2], [5, 8, 1]),  # the longest end
        ([1, 2, 3], []),
        ([5, 5, 5], [5]),
        ([4], []),
    ],
)
def test_what_followed_is_found(tokens, wanted):
    assert followers(tokens, 3) == wanted


class Alone:
    """As much of a sample as `accepted` asks for."""

    def __init__(self, sampling: Sampling, place: int) -> None:
        class Sequence:
            sample, tokens = 0, [0] * place

        class Served:
            class request:
                pass

        self.sequence, self.served = Sequence, Served
        Served.request.sampling = sampling


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.6}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 3}], ids=str
)
def test_what_is_accepted_has_the_law_of_the_model(options):
    draws, generator = 1_500, torch.Generator().manual_seed(2)
    sampling = Sampling(seed=11, **options)
    p_logits_V, q_logits_V = (torch.randn(6, generator=generator) for _ in range(2))
    p_V, q_V = law(p_logits_V, sampling), law(q_logits_V, sampling)
    counts, held = Counter(), 0
    for place in range(draws):
        draft = draw(q_V, uniform(sampling, 0, place, "draft"))
        token = accepted(Alone(sampling, place), p_logits_V, draft, q_V)
        counts[token] += 1
        held += token == draft
    met = p_V.numpy() > 0
    found = np.array([counts[token] for token in range(6)])
    assert not found[~met].any()
    assert chisquare(found[met], draws * p_V.numpy()[met]).pvalue > 1e-4
    rate = torch.minimum(p_V, q_V).sum().item()  # arXiv 2211.17192, theorem 3.5
    assert abs(held / draws - rate) < 4.5 * (rate * (1 - rate) / draws) ** 0.5 + 1e-12


def test_an_engine_that_guesses_draws_from_the_law_of_the_model():
    prompt, options = prompts(PLAIN, 5)[0], {"temperature": 0.5, "top_k": 3, "max_tokens": 3}
    one = engine(draft=loaded(SMALL), draft_tokens=2)
    done = one.generate([prompt], n=120, seed=1, **options)[0].samples
    done += one.generate([prompt], n=120, seed=2, **options)[0].samples
    sampling = Sampling(**options)
    with torch.inference_mode():
        first_V = law(loaded().model(torch.tensor([prompt]))[0, -1], sampling)
        likely = int(first_V.argmax())
        after_V = law(loaded().model(torch.tensor([[*prompt, likely]]))[0, -1], sampling)
    second = [sample.tokens[1] for sample in done if sample.tokens[0] == likely]
    met = np.flatnonzero(after_V.numpy() > 0)
    assert set(second) <= set(met.tolist()) and len(second) > 60
    counts = [second.count(int(token)) for token in met]
    assert chisquare(counts, len(second) * after_V.numpy()[met]).pvalue > 1e-4


def test_a_draft_of_another_vocabulary_or_without_a_head_is_refused():
    with pytest.raises(UserError, match="the draft model has 300 tokens and the model 61"):
        engine(draft=loaded(replace(PLAIN, vocab_size=300)))
    with pytest.raises(UserError, match="no module for multi-token prediction"):
        engine(HYBRID, draft="mtp")
    with pytest.raises(UserError, match="draft_tokens is 0"):
        engine(draft="ngram", draft_tokens=0)
    with pytest.raises(UserError, match="there is no folder"):
        engine(draft="nowhere")
