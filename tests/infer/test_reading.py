"""Blocks that stand between two layers while others get their tokens: the same bits, and no more time than given."""

from __future__ import annotations

import math

import pytest

from nachim.infer import engine as engines
from nachim.infer import reading
from nachim.infer.reading import Reading
from nachim.infer.request import Sampling
from tests.infer.test_engine import DRAWN, GREEDY, HYBRID
from tests.infer.tiny import PLAIN, alone, engine, prompts, said


class Clock:
    """A thread's clock that only `run` moves."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, 0

    def __call__(self) -> float:
        return self.now

    def run(self, seconds: list[int]):
        for layer, taken in enumerate(seconds):
            self.now, self.done = self.now + taken, self.done + 1
            yield layer


@pytest.mark.parametrize(
    ("layers", "seconds", "counts"),
    [
        ([1, 1, 1, 1, 1], 2.5, [2, 2, 1]),
        ([1, 1, 1, 1, 1], 0.0, [1, 1, 1, 1, 1]),
        ([1, 1, 1, 1, 1], 4.9, [4, 1]),
        ([1, 1, 1, 1, 1], math.inf, [5]),
        ([4, 1, 1, 1, 1], 5.0, [1, 4]),
    ],
)
def test_a_block_goes_on_for_as_long_as_it_may(monkeypatch, layers, seconds, counts):
    clock = Clock()
    monkeypatch.setattr(reading.time, "thread_time", clock)
    block, found = Reading(clock.run(layers), len(layers)), []
    while clock.done < len(layers):
        before = clock.done
        last = block.go(seconds)
        found.append(clock.done - before)
        assert last == (len(layers) - 1 if clock.done == len(layers) else None)
    assert found == counts


@pytest.mark.parametrize("spec", [PLAIN, HYBRID], ids=["plain", "hybrid"])
@pytest.mark.parametrize("share", [0.0, 0.8])
def test_where_a_block_stood_changes_no_bit(monkeypatch, spec, share):
    monkeypatch.setattr(engines, "SHARE", share)
    asked = prompts(spec, 5, 50, 40, 33)
    asked[2] = asked[1][:35] + asked[2][:5]
    wanted = alone(spec, asked, **GREEDY | DRAWN | {"max_tokens": 9})
    for options in ({}, {"cache_tokens": 72}, {"draft": "ngram"}):
        one = engine(spec, **options)
        assert said(one.generate(asked, **GREEDY | DRAWN | {"max_tokens": 9})) == wanted
        assert bool(one.scheduler.preempted) == ("cache_tokens" in options)


def test_blocks_of_one_prompt_wait_for_one_another(monkeypatch):
    monkeypatch.setattr(engines, "SHARE", 0.0)
    asked = prompts(PLAIN, 5, 50)
    one = engine(PLAIN, prefixes=False)
    one.scheduler.beside = 10
    assert said(one.generate(asked, **GREEDY | {"max_tokens": 12})) == alone(
        PLAIN, asked, **GREEDY | {"max_tokens": 12}
    )


def test_a_block_that_stands_is_dropped_with_its_request(monkeypatch):
    monkeypatch.setattr(engines, "SHARE", 0.0)
    asked = prompts(PLAIN, 5, 50)
    one = engine(PLAIN, prefixes=False)
    kept = one.add(asked[0], Sampling(**GREEDY | {"max_tokens": 20}))
    one.step()
    dropped, found = one.add(asked[1], Sampling(**GREEDY)), []
    while not any(held.reading for held in one.scheduler.running):
        found += [token for chunk in one.step() for token in chunk.tokens]
    one.abort(dropped)
    while not one.idle:
        found += [token for chunk in one.step() for token in chunk.tokens]
    first = alone(PLAIN, asked[:1], **GREEDY | {"max_tokens": 20})[0][0]
    assert tuple(found) == tuple(first)[1:]
    assert kept not in one.served
    assert all(pool.free == len(pool.owners) for pool in one.store.pools.values())
