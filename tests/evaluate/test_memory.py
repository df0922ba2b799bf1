"""What a model has read: the scores against their definitions, and a text that was learnt by heart."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from nachim.evaluate.memory import area, familiarity, lowest, token_scores
from nachim.spec import UserError
from tests.infer.tiny import PLAIN, loaded

TEXT = b"a text, any text"


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, PLAIN.vocab_size, count).tolist()


def test_scores_of_tokens_are_those_of_one_token_at_a_time():
    model, tokens = loaded().model, ids(20)
    logprobs, relative = token_scores(model, tokens, None)
    for place in range(1, len(tokens)):
        with torch.inference_mode():
            logits = model(torch.tensor([tokens[:place]]))[0, -1].double().numpy()
        p = np.exp(logits - logits.max())
        p /= p.sum()
        own, mean = np.log(p[tokens[place]]), (p * np.log(p)).sum()
        spread = np.sqrt((p * (np.log(p) - mean) ** 2).sum())
        assert logprobs[place - 1] == pytest.approx(own, abs=1e-5)
        assert relative[place - 1] == pytest.approx((own - mean) / spread, abs=1e-4)


def test_a_long_text_is_read_in_pieces_of_the_context():
    model, tokens = loaded().model, ids(33)
    whole, _ = token_scores(model, tokens, 16)
    pieces = [token_scores(model, tokens[start : start + 17], None)[0] for start in (0, 16)]
    assert len(whole) == 32 and np.allclose(whole, np.concatenate(pieces), atol=1e-12)


def test_the_four_scores_are_their_definitions():
    model, tokens = loaded().model, ids(21)
    logprobs, relative = token_scores(model, tokens, None)
    found = familiarity(model, tokens, TEXT, 0.2, None)
    assert found.loss == pytest.approx(logprobs.mean())
    assert found.zlib == pytest.approx(logprobs.sum() / (8 * len(zlib.compress(TEXT))))
    assert found.min_k == pytest.approx(np.sort(logprobs)[:4].mean())
    assert found.min_k_plus == pytest.approx(np.sort(relative)[:4].mean())
    assert lowest(logprobs, 0.001) == logprobs.min()
    with pytest.raises(UserError, match="1 tokens"):
        familiarity(model, tokens[:1], TEXT, 0.2, None)


def test_the_area_is_mann_and_whitneys_with_ties():
    chance = np.random.default_rng(3)
    scores, read = chance.integers(0, 9, 200) + np.arange(200) // 100, np.arange(200) >= 100
    found, low, high = area(scores.tolist(), read.tolist())
    assert found == pytest.approx(mannwhitneyu(scores[read], scores[~read]).statistic / 100**2)
    assert low < found < high and area(scores.tolist(), read.tolist()) == (found, low, high)
    with pytest.raises(UserError, match="both kinds"):
        area([1.0, 2.0], [True, True])


def test_the_interval_of_the_area_holds_its_share_of_true_ones():
    chance, held, true = np.random.default_rng(5), 0, 0.7602  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    for turn in range(60):
        scores = np.concatenate([chance.normal(1, 1, 60), chance.normal(0, 1, 60)])
        _, low, high = area(scores.tolist(), [True] * 60 + [False] * 60, seed=turn, draws=100)
        held += low <= true <= high
    assert 52 <= held <= 60
