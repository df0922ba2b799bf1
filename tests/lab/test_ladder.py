"""Ladders: which runs, in which chains, under which names."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from nachim.budget.shape import ladder_shapes, shape
from nachim.lab.ladder import FEWEST_STEPS, Chain, budgets, make_ladder, name_of
from nachim.lab.recipe import Recipe
from nachim.spec import BPE, Data, UserError

RECIPE = Recipe(data=Data(tokenizer=BPE(vocab_size=512), seq_len=128), precision="fp32", batch_factor=0.2)
SHAPES = ladder_shapes(2.7e5, 1e6, 5, 512, 128)


def test_budgets_are_evenly_spaced_over_the_span() -> None:
    levels = budgets(1e12, count=5, span=16.0)
    assert levels[0] == pytest.approx(1e12 / 16) and levels[-1] == 1e12
    assert all(b / a == pytest.approx(2) for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize("design", ["trunks", "isoflop"])
def test_every_run_has_its_budget_enough_steps_and_fresh_tokens(design: str) -> None:
    levels = budgets(2e12)
    unique = 4_000_000
    ladder = make_ladder(RECIPE, SHAPES, levels, unique, design)
    for run in ladder.runs:
        nearest = min(levels, key=lambda level: abs(level - run.flops))
        assert run.flops == pytest.approx(nearest, rel=0.02)
        assert run.train.tokens <= unique + run.train.batch_tokens
        if design == "trunks":
            assert run.train.steps >= FEWEST_STEPS - 1
    names = [name_of(run) for run in ladder.runs]
    assert len(set(names)) == len(names)


def test_designs_observe_the_same_points() -> None:
    levels = budgets(2e12)
    points = [
        {(run.model.d_model, round(run.train.tokens, -4)) for run in make_ladder(RECIPE, SHAPES, levels, 10**8, d).runs}
        for d in ("trunks", "isoflop")
    ]
    assert len(points[0] & points[1]) >= 0.8 * len(points[0])


def test_trunks_cost_less_than_separate_runs() -> None:
    trunks = make_ladder(RECIPE, SHAPES, budgets(2e12), 10**8, "trunks")
    separate = make_ladder(RECIPE, SHAPES, budgets(2e12), 10**8, "isoflop")
    assert trunks.flops < 0.6 * separate.flops
    assert separate.flops == sum(run.flops for run in separate.runs)


def test_chain_counts_the_shared_part_once() -> None:
    model = shape(32, 512)
    runs = tuple(RECIPE.run(model, 1e12, tokens) for tokens in (1e6, 2e6))
    shared = int(0.8 * runs[0].train.tokens) // runs[0].train.batch_tokens * runs[0].train.batch_tokens
    expected = sum(run.flops for run in runs) - shared * runs[0].flops_per_token
    assert Chain(runs=runs).flops == expected


def test_chain_refuses_runs_that_share_nothing() -> None:
    model = shape(32, 512)
    short, long = (RECIPE.run(model, 1e12, tokens) for tokens in (1e6, 2e6))
    reseeded = dataclasses.replace(long, train=dataclasses.replace(long.train, seed=1))
    for runs in ((long, short), (short, reseeded), ()):
        with pytest.raises(UserError, match=r"Chain\.runs"):
            Chain(runs=runs)


def test_a_ladder_without_room_says_what_to_change() -> None:
    with pytest.raises(UserError, match="no shape fits budgets"):
        make_ladder(RECIPE, SHAPES, budgets(1e8), 10**8, "trunks")
