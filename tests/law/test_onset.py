"""Runs before the steepest fall: found where a curve steepens, never in what a law makes, and worth leaving out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nachim.law import study
from nachim.law.observe import Observations
from nachim.law.onset import before_onset, weighed

SCALES = (2.6e5, 3.7e5, 6.7e5, 8.3e5, 1.5e6)
TARGET, TARGET_TOKENS = 1.7e6, 7e6


def law(x: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return 0.7 + 0.35 * (x / 1e6) ** -0.45 + 0.4 * (tokens / 1e6) ** -0.4


def learning(x: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """What a law makes once something was learnt, at 4e11 FLOP, and 16 % more before."""
    return law(x, tokens) * (1 + 0.16 / (1 + (x * tokens / 4e11) ** 3))


def ladder(loss, noise: float = 0.0, seed: int = 0, top: float = 1.2e12, scales=SCALES, least: float = 4e5):
    """Nine budgets over a factor of ten, as far as `least` tokens allow."""
    rows = [(x, flops / x) for x in scales for flops in top * 10 ** (np.arange(9) / 8 - 1) if flops / x >= least]
    x, tokens = np.array(rows).T
    drawn = np.exp(noise * np.random.default_rng(seed).normal(size=len(x)))
    return Observations(flops_per_token=x, tokens=tokens, loss=loss(x, tokens) * drawn, flops=x * tokens)


def test_what_a_law_makes_has_no_onset():
    assert not before_onset(ladder(law)).any()
    noisy = [before_onset(ladder(law, 0.002, seed)).any() for seed in range(60)]
    assert sum(noisy) <= 3


def test_an_onset_is_found_and_what_ends_before_it_left_out():
    obs = ladder(learning, 0.001)
    before = before_onset(obs)
    assert before[obs.flops < 2.5e11].all() and not before[obs.flops > 8e11].any()
    assert (weighed(obs).weight == np.where(before, 0.0, 1.0)).all()


def test_short_curves_are_held_against_the_compute_of_the_others():
    obs = ladder(learning, scales=(*SCALES, 2.2e6, 3.0e6))
    short = obs.flops_per_token == 2.2e6
    assert short.sum() == 2 and not before_onset(obs)[short].any()
    early = dataclasses.replace(obs, flops=np.where(short, 1e11, obs.flops))
    assert before_onset(early)[short].all()


def test_a_forecast_across_ten_times_the_compute_is_better_without_them():
    true = float(law(np.array(TARGET), np.array(TARGET_TOKENS)))
    misses = []
    for seed in range(3):
        obs = ladder(learning, 0.001, seed)
        misses.append([study(each).predict(TARGET, TARGET_TOKENS)[0] / true - 1 for each in (obs, weighed(obs))])
    whole, late = np.sqrt(np.mean(np.square(misses), axis=0))
    assert late < 0.5 * whole


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(lambda obs: obs.flops < 4.5e11, id="too little would be left"),
        pytest.param(lambda obs: obs.flops < 7e11, id="too narrow a range of compute would be left"),
        pytest.param(lambda obs: obs.flops_per_token < 5e5, id="too few curves show it"),
    ],
)
def test_a_table_that_cannot_tell_stays_whole(kept):
    obs = ladder(learning)
    assert before_onset(obs).any()
    assert not before_onset(obs.subset(kept(obs))).any()


def test_seeds_and_groups_are_curves_of_their_own():
    obs = ladder(learning)
    twice = Observations(
        flops_per_token=np.tile(obs.flops_per_token, 2),
        tokens=np.tile(obs.tokens, 2),
        loss=np.concatenate([obs.loss, 1.05 * obs.loss]),
        flops=np.tile(obs.flops, 2),
        seed=np.repeat([0.0, 1.0], len(obs)),
    )
    assert (before_onset(twice) == np.tile(before_onset(obs), 2)).all()
