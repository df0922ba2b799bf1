"""Learning-rate factors against their closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nachim.spec import WSD, AdamW, Cosine, Growth, MultiStep, Schedule, Train, UserError
from nachim.train.schedule import course, factor, stable_steps
from tests.spec.examples import RUN


def training(schedule: Schedule, steps: int, batch: int = 64, growth: Growth | None = None) -> Train:
    """`steps` steps of `batch` tokens, fewer where the batch grows."""
    return Train(tokens=steps * batch, batch_tokens=batch, optimizer=AdamW(lr=1.0), schedule=schedule, growth=growth)


def factors(schedule: Schedule, steps: int) -> list[float]:
    """The factor of every step."""
    return [factor(training(schedule, steps), step) for step in range(steps)]


def test_cosine_falls_from_the_peak_to_its_end_by_half_a_cosine():
    found = factors(Cosine(final=0.1), 100)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.55)
    assert found[25] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert found == sorted(found, reverse=True)
    assert course(Cosine(final=0.1), 6400, 6400) == pytest.approx(0.1)
    assert course(Cosine(final=0.0), 6400, 6400) == pytest.approx(0.0, abs=1e-15)


def test_cosine_counts_from_the_end_of_its_warm_up():
    found = factors(Cosine(final=0.2, warmup_tokens=20 * 64), 100)
    assert found[20] == 1.0
    assert found[60] == pytest.approx(0.6)
    assert max(found) == 1.0


@pytest.mark.parametrize("steps", [10, 70, 1000, 3330])
def test_multi_step_drops_at_80_and_90_percent(steps):
    found = factors(MultiStep(), steps)
    tenth = steps // 10
    assert found == [1.0] * (8 * tenth) + [0.316] * tenth + [0.1] * tenth


@pytest.mark.parametrize("decay", [0.1, 0.2, 0.5, 1.0])
def test_wsd_stays_and_then_falls_in_a_line_to_zero(decay):
    found = factors(WSD(decay=decay), 100)
    expected = [min(1.0, (100 - step) / (100 * decay)) for step in range(100)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert course(WSD(decay=decay), 6400, 6400) == 0.0
    assert found[-1] == pytest.approx(0.01 / decay)


@pytest.mark.parametrize("schedule", [Cosine, MultiStep, WSD])
def test_warm_up_is_a_line_that_reaches_the_peak_at_its_end(schedule):
    found = factors(schedule(warmup_tokens=9 * 64), 100)
    assert found[:9] == pytest.approx([(step + 1) / 10 for step in range(9)])
    assert found[9] == 1.0
    assert factors(schedule(), 100)[0] == 1.0


@pytest.mark.parametrize("decay", [0.1, 0.2, 0.25, 0.3, 0.9])
@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("steps", [40, 41, 97, 200])
def test_a_short_run_shares_its_stable_steps_with_every_longer_one(steps, warmup, decay):
    schedule = WSD(decay=decay, warmup_tokens=warmup * 64)
    short = factors(schedule, steps)
    shared = stable_steps(training(schedule, steps))
    assert shared >= (1 - decay) * steps - 1
    for longer in (steps + 1, 2 * steps, 5 * steps):
        long = training(schedule, longer)
        assert [factor(long, step) for step in range(shared)] == short[:shared]


def spans(train: Train) -> list[int]:
    """Tokens of every step."""
    return [train.token_at(step + 1) - train.token_at(step) for step in range(train.steps)]


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0])
def test_a_growing_batch_follows_its_power_in_whole_multiples(power):
    train = training(WSD(), 4000, growth=Growth(begin_tokens=6400, power=power))
    assert train.token_at(0) == 0 and train.token_at(train.steps) == sum(spans(train)) == train.tokens
    for step, taken in enumerate(spans(train)[:-1]):
        wanted = max(1.0, (train.token_at(step) / 6400) ** power)
        assert taken % 64 == 0 and abs(taken / 64 - wanted) <= 0.5
    assert 0 < spans(train)[-1] <= 64 * round((train.tokens / 6400) ** power)


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0])
def test_a_batch_that_grows_by_a_unit_is_nowhere_further_from_its_power_than_half_of_it(power):
    train = training(WSD(), 4000, growth=Growth(begin_tokens=6400, power=power, unit_tokens=16))
    assert sum(spans(train)) == train.tokens and spans(train)[0] == 64
    for step, taken in enumerate(spans(train)[:-1]):
        wanted = 64 * max(1.0, (train.token_at(step) / 6400) ** power)
        assert taken % 16 == 0 and abs(taken - wanted) <= 8


def test_a_unit_divides_the_batch_and_is_whole_sequences():
    with pytest.raises(UserError, match="has a unit of 48; it must divide 64"):
        training(WSD(), 10, growth=Growth(begin_tokens=6400, power=1.0, unit_tokens=48))
    train = training(WSD(), 10, growth=Growth(begin_tokens=6400, power=1.0, unit_tokens=2))
    with pytest.raises(UserError, match="grows by 2 tokens, which is not whole sequences"):
        replace(RUN, train=train)


@pytest.mark.parametrize("steps", [70, 150, 1001])
def test_a_growing_batch_shares_its_stable_steps_with_every_longer_run(steps):
    growth = Growth(begin_tokens=30 * 64, power=0.75)
    short = training(WSD(warmup_tokens=640), steps, growth=growth)
    shared = stable_steps(short)
    assert short.token_at(shared) <= 0.8 * short.tokens < short.token_at(shared + 1)
    for longer in (steps + 1, 2 * steps, 5 * steps):
        long = training(WSD(warmup_tokens=640), longer, growth=growth)
        assert spans(long)[:shared] == spans(short)[:shared]
        assert [factor(long, step) for step in range(shared)] == [factor(short, step) for step in range(shared)]


def test_a_batch_warms_up_and_grows_no_further():
    train = training(WSD(), 4000, growth=Growth(begin_tokens=6400, power=1.0, most=4))
    *grown, last = spans(train)
    assert grown == sorted(grown) and set(grown) == {64, 2 * 64, 3 * 64, 4 * 64} and last <= 4 * 64
    full = grown.index(4 * 64)
    assert train.token_at(full) == pytest.approx(3.5 * 6400, rel=0.01), "four times, as soon as that is nearest"


def test_a_batch_that_never_grows_is_a_constant_one():
    growth = Growth(begin_tokens=10**9, power=1.0)
    grown, constant = training(WSD(warmup_tokens=640), 97, growth=growth), training(WSD(warmup_tokens=640), 97)
    assert (spans(grown), stable_steps(grown)) == (spans(constant), stable_steps(constant))


@pytest.mark.parametrize("schedule", [Cosine(), MultiStep(), WSD(decay=1.0), WSD(warmup_tokens=60 * 64, decay=0.5)])
def test_other_courses_share_nothing_with_a_longer_run(schedule):
    assert stable_steps(training(schedule, 100)) == 0


def test_a_schedule_without_a_course_is_named():
    with pytest.raises(UserError, match="no course for Schedule"):
        factor(training(Schedule(), 10), 5)
