"""Learning-rate schedules: a factor on the peak rate, as a pure function of tokens."""

from __future__ import annotations

import bisect
import functools
import math

from nachim.spec import WSD, Constant, Cosine, MultiStep, Schedule, Train, UserError


@functools.singledispatch
def course(schedule: Schedule, token: int, tokens: int) -> float:
    """Factor on the peak rate after warm-up, for the step that begins at `token` of `tokens`."""
    raise UserError(f"no course for {type(schedule).__name__}: register one with nachim.train.schedule.course")


@course.register
def _(schedule: Constant, token: int, tokens: int) -> float:
    return 1.0


@course.register
def _(schedule: Cosine, token: int, tokens: int) -> float:
    done = (token - schedule.warmup_tokens) / max(1, tokens - schedule.warmup_tokens)
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * done))


@course.register
def _(schedule: MultiStep, token: int, tokens: int) -> float:
    if token < 0.8 * tokens:
        return 1.0
    return 0.316 if token < 0.9 * tokens else 0.1


@course.register
def _(schedule: WSD, token: int, tokens: int) -> float:
    return min(1.0, (tokens - token) / (schedule.decay * tokens))


def factor(train: Train, step: int) -> float:
    """Factor on the peak rate at `step` (from 0): linear warm-up, then the schedule's course."""
    token = train.token_at(step)
    schedule = train.schedule
    if token < schedule.warmup_tokens:
        return (token + train.batch_tokens) / (schedule.warmup_tokens + train.batch_tokens)
    return course(schedule, token, train.tokens)


def stable_steps(train: Train) -> int:
    """Leading steps that do not depend on the run's length: all before the decay for WSD, none for other schedules."""
    if not isinstance(train.schedule, WSD):
        return 0
    decay_begins = int((1 - train.schedule.decay) * train.tokens)
    begin = bisect.bisect_right(range(train.steps), decay_begins, key=train.token_at) - 1
    return begin if factor(train, max(0, begin - 1)) == 1.0 else 0
