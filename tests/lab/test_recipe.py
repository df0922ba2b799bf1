"""Recipes: laws for batch and rate, whole steps, seeds."""

from __future__ import annotations

import pytest

from nachim.budget.shape import shape
from nachim.lab.recipe import GROWTH, Anchor, Recipe
from nachim.spec import BPE, WSD, Cosine, Data, MultiStep, UserError

DATA = Data(tokenizer=BPE(vocab_size=512), seq_len=128)


def recipe(**changes: object) -> Recipe:
    return Recipe(data=DATA, precision="fp32", **changes)


def test_batch_and_rate_are_deepseeks_at_its_own_budget() -> None:
    # DeepSeek 7B on 2 T tokens (arXiv 2401.02954): C = 72 L d^2 D + 12 L d s D with L=30, d=4096, s=4096
    flops = (72 * 30 * 4096**2 + 12 * 30 * 4096 * 4096) * 2e12
    assert float(recipe().transfer.batch_tokens(flops)) == pytest.approx(9.22e6, rel=0.01)
    assert float(recipe().transfer.lr(flops)) == pytest.approx(4.25e-4, rel=0.01)
    assert recipe().batch_tokens(flops) == 128 * 2**16


@pytest.mark.parametrize("flops", [1e9, 1e11, 1e13, 1e18])
def test_batch_is_a_power_of_two_of_sequences_nearest_to_the_law(flops: float) -> None:
    batch = recipe().batch_tokens(flops)
    wanted = max(128.0, float(recipe().transfer.batch_tokens(flops)))
    assert batch % 128 == 0 and (batch // 128).bit_count() == 1
    assert 2**-0.5 <= batch / wanted <= 2**0.5


def test_run_takes_whole_steps_near_the_wanted_tokens() -> None:
    run = recipe().run(shape(32, 512), 1e11, 1_000_000)
    assert abs(run.train.tokens - 1_000_000) <= run.train.batch_tokens
    assert run.train.schedule.warmup_tokens == 64 * run.train.batch_tokens


def test_an_anchored_recipe_has_one_course_for_every_run() -> None:
    anchored = recipe(anchor=Anchor(flops=1e11, tokens=300_000), batch_factor=0.2)
    model = shape(32, 512)
    small, large = (anchored.run(model, flops, tokens) for flops, tokens in ((1e11, 3e5), (1e13, 3e7)))
    alone = recipe(batch_factor=0.2).run(model, 1e11, 3e5)
    assert (small.train.batch_tokens, small.train.optimizer) == (alone.train.batch_tokens, alone.train.optimizer)
    assert small.train.optimizer == large.train.optimizer and small.train.batch_tokens == large.train.batch_tokens
    assert [small.train.token_at(step) for step in range(100)] == [large.train.token_at(step) for step in range(100)]
    last = large.train.token_at(large.train.steps - 1) - large.train.token_at(large.train.steps - 2)
    assert last == pytest.approx(100**GROWTH * large.train.batch_tokens, rel=0.05)


def test_seed_draws_weights_and_order() -> None:
    run = recipe(seed=3).run(shape(32, 512), 1e11, 1e6)
    assert (run.train.seed, run.data.seed) == (3, 3)
    other = recipe(seed=3).run(shape(32, 512), 1e11, 1e6, seed=9)
    assert (other.train.seed, other.data.seed) == (9, 9)


@pytest.mark.parametrize(("name", "kind"), [("wsd", WSD), ("cosine", Cosine), ("multistep", MultiStep)])
def test_schedule_by_name(name: str, kind: type) -> None:
    assert type(recipe(schedule=name).run(shape(32, 512), 1e11, 1e6).train.schedule) is kind


def test_negative_factor_is_refused() -> None:
    with pytest.raises(UserError, match="lr_factor"):
        recipe(lr_factor=-1.0)
