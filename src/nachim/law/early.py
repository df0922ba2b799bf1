"""Runs too short to speak of a target ten times as dear as any of them.

Curves of small models bend where no law does: they fall slowly at first, then steeply, then ever more slowly. What
comes before the last part tells little of it, and makes forecasts too good (`ideas/late_runs.md`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from nachim.law.observe import Observations

SHARE = 8
"""A run is early when it takes less than one part in so many of the target's tokens."""
LEAST_RUNS, LEAST_SHAPES = 9, 3
"""So many runs and shapes are kept at least: those that take the most tokens."""


def late(obs: Observations, target_tokens: float) -> Observations:
    """`obs` with weight 0 on the runs that are early for a target of so many tokens."""
    counts = obs.weight > 0
    tokens, x = obs.tokens[counts], obs.x(obs.scales[0])[counts]
    longest = [tokens[x == each].max() for each in np.unique(x)]
    if len(tokens) < LEAST_RUNS or len(longest) < LEAST_SHAPES:
        return obs
    kept = min(np.sort(tokens)[-LEAST_RUNS], np.sort(longest)[-LEAST_SHAPES])
    return dataclasses.replace(obs, weight=np.where(obs.tokens < min(target_tokens / SHARE, kept), 0.0, obs.weight))
