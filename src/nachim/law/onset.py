"""Runs that end before their shape falls steepest: no law describes them together with those that follow.

Every law here is a sum of falling powers over a floor, so that with tokens, the model as it is, log loss over log
tokens falls ever more slowly. Small models at the start of training do the opposite while something new is being
learnt, such as copying from the context: measured curves steepen first. What lies before that says nothing of what
comes after it, and a law through both takes the steep part for the future.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from nachim.law.forms import Array
from nachim.law.observe import Observations

STEEPER = 1.15
"""A fall is the steeper one when it is so many times as steep as the first: below that it is noise."""
FEWEST_RUNS, FEWEST_CURVES = 4, 2
"""A curve that shows an onset has so many runs, and a table so many curves that do."""
LEAST_RUNS, LEAST_SHAPES, LEAST_SPAN = 12, 4, 3.0
"""What is left of a table must be so many runs and shapes over such a range of compute, or all of it stays."""


def weighed(obs: Observations) -> Observations:
    """`obs` with weight 0 on the runs that end before the onset (see `before_onset`)."""
    return dataclasses.replace(obs, weight=np.where(before_onset(obs), 0.0, obs.weight))


def before_onset(obs: Observations) -> npt.NDArray[np.bool_]:
    """Which rows end before the steepest fall of their curve: runs of one scale, `group` and seed, over tokens.

    Curves of fewer than `FEWEST_RUNS` runs are held against the median compute at which the others fall steepest. None
    is before it where fewer than `FEWEST_CURVES` curves steepen, or where too little of the table would be left.
    """
    x = obs.x(obs.scales[0])
    curves = [rows for rows in _curves(obs) if len(rows) >= FEWEST_RUNS]
    begins = {rows[0]: _steepest(obs, rows) for rows in curves}
    onsets = [obs.flops[rows[begins[rows[0]]]] for rows in curves if begins[rows[0]]]
    nothing = np.zeros(len(obs), dtype=bool)
    if len(onsets) < FEWEST_CURVES:
        return nothing
    before = obs.flops < np.median(onsets)
    for rows in curves:
        before[rows] = np.arange(len(rows)) < begins[rows[0]]
    left = ~before & (obs.weight > 0)
    if left.sum() < LEAST_RUNS or len(set(x[left].tolist())) < LEAST_SHAPES:
        return nothing
    return before if np.ptp(np.log(obs.flops[left])) >= np.log(LEAST_SPAN) else nothing


def _curves(obs: Observations) -> list[npt.NDArray[np.intp]]:
    """Rows of each curve, shortest run first."""
    named = [obs.x(obs.scales[0]).tolist()]
    named += [column.tolist() for column in (obs.group, obs.seed) if column is not None]
    found: dict[tuple[object, ...], list[int]] = {}
    for row, key in enumerate(zip(*named, strict=True)):
        found.setdefault(key, []).append(row)
    return [np.array(sorted(rows, key=lambda row: obs.tokens[row])) for rows in found.values()]


def _steepest(obs: Observations, rows: npt.NDArray[np.intp]) -> int:
    """The place in `rows` at which the steepest fall ends; 0 where it is the first, or no steeper than noise."""
    falls: Array = -np.diff(np.log(obs.loss[rows])) / np.diff(np.log(obs.tokens[rows]))
    place = int(np.argmax(falls))
    return place + 1 if place and falls[place] > STEEPER * falls[0] else 0
