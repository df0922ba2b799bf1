"""Runs that are early for a target: told by its tokens, and worth leaving out where curves begin too flat."""

from __future__ import annotations

import numpy as np

from nachim.law import study
from nachim.law.early import LEAST_RUNS, LEAST_SHAPES, SHARE, late
from nachim.law.observe import Observations

SCALES = (2.6e5, 5.1e5, 8.3e5, 1.3e6, 2.3e6)
TARGET, TARGET_TOKENS = 1.7e6, 7e6


def law(x, tokens):
    return 0.7 + 0.35 * (x / 1e6) ** -0.6 + 0.4 * (tokens / 1e6) ** -0.45


def learning(x, tokens):
    """What the law makes once something was learnt, by a million tokens, and 6 % more before."""
    return law(x, tokens) * (1 + 0.06 / (1 + (tokens / 1e6) ** 3))


def ladder(loss, noise=0.0, seed=0, top=1.5e12):
    """Nine budgets over a factor of ten, as far as 300,000 tokens allow."""
    rows = [(x, flops / x) for x in SCALES for flops in top * 10 ** (np.arange(9) / 8 - 1) if flops / x >= 3e5]
    x, tokens = np.array(rows).T
    drawn = np.exp(noise * np.random.default_rng(seed).normal(size=len(x)))
    return Observations(flops_per_token=x, tokens=tokens, loss=loss(x, tokens) * drawn, flops=x * tokens)


def test_early_is_less_than_an_eighth_of_the_targets_tokens():
    obs = ladder(law)
    left = late(obs, TARGET_TOKENS)
    assert SHARE == 8
    assert ((left.weight == 0) == (obs.tokens < TARGET_TOKENS / 8)).all()
    assert 0 < (left.weight == 0).sum() < len(obs) - LEAST_RUNS
    assert (late(obs, 0).weight == obs.weight).all()


def test_the_longest_stay_where_too_few_would_be_left():
    obs = ladder(law)
    left = late(obs, SHARE * obs.tokens.max()).weight > 0
    assert left.sum() == LEAST_RUNS and obs.tokens[left].min() > obs.tokens[~left].max()
    wide = obs.flops_per_token > 3e5  # of one shape all runs are late, of the others none
    tokens = np.where(wide, 3e5, 2e6) + np.arange(len(obs))
    narrow = Observations(flops_per_token=obs.flops_per_token, tokens=tokens, loss=obs.loss)
    assert len(set(obs.flops_per_token[late(narrow, 8e6).weight > 0])) >= LEAST_SHAPES


def test_of_a_small_table_all_stay():
    obs = ladder(law)
    few = Observations(flops_per_token=obs.flops_per_token[:8], tokens=obs.tokens[:8], loss=obs.loss[:8])
    assert (late(few, 1e9).weight == 1).all()


def test_a_run_that_was_left_out_before_stays_out():
    obs = ladder(law)
    out = Observations(
        flops_per_token=obs.flops_per_token, tokens=obs.tokens, loss=obs.loss, weight=(obs.tokens < 3e6) * 1.0
    )
    assert (late(out, TARGET_TOKENS).weight <= out.weight).all()


def test_a_forecast_across_ten_times_the_compute_is_better_without_them():
    true = float(law(TARGET, TARGET_TOKENS))
    misses = []
    for seed in range(4):
        obs = ladder(learning, 0.002, seed)
        readings = (study(each, noise=0.002) for each in (obs, late(obs, TARGET_TOKENS)))
        misses.append([float(reading.predict(TARGET, TARGET_TOKENS)[0]) / true - 1 for reading in readings])
    every, rest = np.abs(misses).mean(axis=0)
    assert rest < every / 2
