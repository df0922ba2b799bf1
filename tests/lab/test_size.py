"""Sizing: the plan that fits the minutes."""

from __future__ import annotations

import pytest

from nachim.budget.shape import family
from nachim.budget.throughput import Throughput
from nachim.lab.ladder import make_ladder
from nachim.lab.recipe import Recipe
from nachim.lab.size import REACH, Pace, Plan, anchored, lay_out, repeat, size, sweep_shape, total
from nachim.spec import BPE, CompleteP, Data, Run, Standard, UserError

RECIPE = Recipe(data=Data(tokenizer=BPE(vocab_size=512), seq_len=128), precision="fp32", batch_factor=0.2)
UNIQUE = 13_000_000


def pace(rate: float, workers: int = 2) -> Pace:
    """Every model trains at `rate` FLOP/s on one core, and `workers` times that on all."""
    flops = (1e5, 1e6, 1e7, 1e8)
    beside = Throughput(threads=1, flops=flops, seconds=tuple(f / rate for f in flops))
    alone = Throughput(threads=workers, flops=flops, seconds=tuple(f / rate / workers for f in flops))
    return Pace(alone, beside, workers)


@pytest.mark.parametrize("seconds", [360.0, 420.0, 600.0, 1200.0, 3600.0])
def test_plan_fills_the_time_and_keeps_the_promises(seconds: float) -> None:
    plan = size(RECIPE, seconds, UNIQUE, pace(2e10), "trunks")
    assert 0.85 * seconds <= total(plan) <= seconds
    assert len(plan.shapes) >= 5
    assert len({model.n_layers for model in plan.shapes}) == 1
    assert {model.attention.d_head for model in plan.shapes} == {16}
    assert len(planned(plan)) >= 20
    assert plan.levels[-1] / plan.levels[0] == pytest.approx(10)
    assert plan.target_flops >= REACH * plan.levels[-1] * 0.999


def test_a_large_ladder_has_no_run_at_the_start_of_training_and_a_small_one_keeps_its_twenty() -> None:
    """An eighth of a target's tokens at least, where enough runs are left; the smallest ladders need their short ones.

    The planned optimum is twice DeepSeek's M = 0.1715 C^0.5243 (arXiv 2401.02954), and tokens are C / M.
    """
    large, small = (lay_out_in(seconds) for seconds in (3600, 420))
    top = large.levels[-1]
    shortest = min(run.train.tokens for run in planned(large))
    assert shortest >= 0.99 * 0.4 * top / (2 * 0.1715 * top**0.5243)
    top = small.levels[-1]
    assert min(run.train.tokens for run in planned(small)) < 0.4 * top / (2 * 0.1715 * top**0.5243)


def lay_out_in(seconds: float) -> Plan:
    return size(RECIPE, seconds, UNIQUE, pace(2e10), "trunks")


def planned(plan: Plan) -> tuple[Run, ...]:
    recipe = anchored(RECIPE, plan.levels, plan.design)
    return make_ladder(recipe, plan.shapes, plan.levels, UNIQUE, plan.design, plan.least_tokens).runs


def test_a_faster_machine_climbs_higher() -> None:
    slow, fast = (size(RECIPE, 900, UNIQUE, pace(rate), "trunks") for rate in (2e10, 8e10))
    assert fast.levels[-1] > 2 * slow.levels[-1]


def test_trunks_share_a_rate_that_suits_every_shape() -> None:
    """The sweep's shape is the base, where CompleteP is the standard one; separate runs keep a rate of their own."""
    levels = (1e11, 1e12)
    base, shared = sweep_shape(RECIPE, 1e11), anchored(RECIPE, levels, "trunks")
    part = shared.run(base, 1e11, 1e6).model.parametrisation
    assert isinstance(part, CompleteP)
    assert (part.wider(base.d_model), part.deeper(base.n_layers), part.score(base.attention.d_head)) == (1, 1, 1)
    assert shared.run(base, 1e13, 1e8).train.optimizer == shared.run(base, 1e11, 1e6).train.optimizer
    assert anchored(RECIPE, levels, "isoflop").run(base, 1e11, 1e6).model.parametrisation == Standard()


def test_a_target_has_a_shape_that_takes_it_within_one_epoch() -> None:
    """However much time there is: the M of the family between the target's least and twice the ladder's largest."""
    unique = 2_000_000
    plan = size(RECIPE, 36_000, unique, pace(2e10), "trunks")
    sizes = [m for m, _ in family(512, 128, plan.shapes[0].n_layers)]
    largest = max(model.flops_per_token(128) for model in plan.shapes)
    assert any(plan.target_flops / unique <= m <= 2 * largest for m in sizes)


def test_too_little_time_names_the_least_that_works() -> None:
    with pytest.raises(UserError, match=r"the smallest takes about \d+\.\d minutes"):
        size(RECIPE, 20, UNIQUE, pace(2e10), "trunks")


def test_too_little_text_is_said() -> None:
    with pytest.raises(UserError, match="none fits the corpus"):
        size(RECIPE, 600, 50_000, pace(2e10), "trunks")


@pytest.mark.parametrize("design", ["trunks", "isoflop"])
def test_repeat_differs_in_its_seed_alone(design: str) -> None:
    plan = lay_out(RECIPE, 1e12, UNIQUE, pace(2e10), design)
    ladder = make_ladder(RECIPE, plan.shapes, plan.levels, UNIQUE, design)
    again = repeat(RECIPE, ladder).runs
    assert 2 <= len(again) <= 3
    points = {(run.model, run.train.tokens) for run in ladder.runs}
    assert all((run.model, run.train.tokens) in points and run.train.seed == 1 for run in again)
