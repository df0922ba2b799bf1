"""Laws and draws against transformers' processors and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nachim.infer.request import Sampling
from nachim.infer.sample import adjusted, draw, law, likeliest, likeliest_of, residual, uniform
from nachim.spec import UserError

V = 40
LOGITS = 2.5 * torch.randn(V, generator=torch.Generator().manual_seed(0))
TOKENS = [3, 5, 5, 7, 9, 9, 9, 1]

CASES = [
    {"temperature": 0.7},
    {"temperature": 1.7, "top_k": 5},
    {"top_k": 1},
    {"top_p": 0.6},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("options", CASES, ids=map(str, CASES))
def test_a_law_is_that_of_transformers(options):
    sampling = Sampling(**options)
    scores = TemperatureLogitsWarper(sampling.temperature)(None, LOGITS[None].double())
    if sampling.top_k is not None:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    if sampling.min_p:
        scores = MinPLogitsWarper(sampling.min_p)(None, scores)
    torch.testing.assert_close(law(LOGITS, sampling), scores[0].softmax(-1), rtol=1e-12, atol=1e-14)


def test_the_repetition_penalty_is_that_of_transformers():
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([TOKENS]), LOGITS[None].clone())[0]
    torch.testing.assert_close(adjusted(LOGITS, TOKENS, 4, Sampling(repetition_penalty=1.3)), theirs)


def test_presence_and_frequency_count_what_was_generated():
    found = adjusted(LOGITS, TOKENS, 3, Sampling(presence_penalty=0.5, frequency_penalty=0.25)) - LOGITS
    wanted = torch.zeros(V)
    wanted[[7, 1]], wanted[9] = -0.75, -0.5 - 3 * 0.25
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_bias_is_added_and_a_mask_forbids():
    allowed = torch.ones(V, dtype=torch.bool)
    allowed[2] = False
    found = adjusted(LOGITS, TOKENS, 3, Sampling(logit_bias={4: 2.0, 2: 100.0}), allowed)
    assert found[4] == LOGITS[4] + 2
    assert found[2] == -torch.inf


def test_draws_have_the_frequencies_of_the_law():
    p_V = law(LOGITS, Sampling(temperature=1.2, top_p=0.9))
    draws = [draw(p_V, uniform(Sampling(seed=1), 0, place)) for place in range(4_000)]
    counts = np.bincount(draws, minlength=V)
    met = p_V.numpy() > 0
    assert not counts[~met].any()
    assert chisquare(counts[met], 4_000 * p_V.numpy()[met]).pvalue > 1e-4


def test_a_draw_never_leaves_the_law():
    p_V = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    assert [draw(p_V, u) for u in (0.0, 0.499, 0.5, 1 - 2**-53)] == [1, 1, 3, 3]


def test_numbers_of_seeds_samples_places_and_streams_differ():
    one = {uniform(Sampling(seed=seed), sample, place) for seed in (1, 2) for sample in (0, 1) for place in (0, 1)}
    streams = {uniform(Sampling(seed=1), 0, 0, name) for name in ("token", "draft", "accept", "residual")}
    assert len(one) == 8 and len(streams) == 4
    assert uniform(Sampling(seed=5), 1, 9) == uniform(Sampling(seed=5), 1, 9)


def test_what_is_left_after_a_refusal_completes_the_law():
    generator = torch.Generator().manual_seed(3)
    p_V, q_V = (torch.randn(V, generator=generator).double().softmax(0) for _ in range(2))
    kept = torch.minimum(p_V, q_V)
    left = residual(p_V, q_V)
    torch.testing.assert_close(kept + (1 - kept.sum()) * left / left.sum(), p_V)


def test_the_likeliest_come_in_order():
    assert likeliest(torch.tensor([-3.0, -1.0, -2.0, -1.0]), 3) == {1: -1.0, 3: -1.0, 2: -2.0}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be a finite number above 0 and at most 1"),
        ({"top_k": 0}, "top_k is 0; it must be a whole number of at least 1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5"),
        ({"logit_bias": {3: 101.0}}, "logit_bias of token 3 is 101.0; it must be between -100 and 100"),
        ({"logit_bias": {"3": 1.0}}, "its keys must be token ids"),
        ({"logit_bias": [3]}, "logit_bias is [3]"),
        ({"stop": ""}, "stop holds ''"),
        ({"stop": [3]}, "stop holds 3"),
        ({"stop": 3}, "stop is 3; it must be a list"),
        ({"stop_tokens": ["a"]}, "stop_tokens holds 'a'"),
        ({"n": 0}, "n is 0"),
        ({"n": 3, "best_of": 2}, "best_of is 2; it must be a whole number between 3 and 128"),
        ({"seed": -1}, "seed is -1"),
        ({"logprobs": 5}, "logprobs is 5; it must be True or False"),
    ],
)
def test_bad_sampling_is_refused_in_a_sentence(options, told):
    with pytest.raises(UserError) as found:
        Sampling(**options)
    assert told in str(found.value)


def test_the_likeliest_of_rows_is_the_lowest_of_equals_and_tells_what_is_no_number():
    told = likeliest_of(torch.tensor([[0.0, 2.0, 2.0], [1.0, float("nan"), 3.0], [-torch.inf] * 3]))
    assert told[0] == (1, 2.0)
    assert math.isnan(told[1][1]) and told[2][1] == -math.inf
    assert likeliest_of(torch.empty(0, 3)) == []
