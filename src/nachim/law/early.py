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
"""What is left must be so many runs and shapes, or all of them stay."""


def late(obs: Observations, target_tokens: float) -> Observations:
    """`obs` with weight 0 on the runs that are early for a target of so many tokens, where enough others are left."""
    weight = np.where(obs.tokens < target_tokens / SHARE, 0.0, obs.weight)
    left = weight > 0
    enough = left.sum() >= LEAST_RUNS and len(set(obs.x(obs.scales[0])[left].tolist())) >= LEAST_SHAPES
    return dataclasses.replace(obs, weight=weight) if enough else obs
