"""The sweep of learning rate and batch, on a loss surface that is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from nachim.budget.shape import shape
from nachim.lab.ladder import Ladder
from nachim.lab.recipe import Recipe
from nachim.lab.sweep import settle, sweep
from nachim.spec import BPE, Data, Run, UserError

RECIPE = Recipe(data=Data(tokenizer=BPE(vocab_size=512), seq_len=128), precision="fp32", batch_factor=0.2)
MODEL, FLOPS = shape(32, 512), 2e11
RATE, BATCH = (float(law(FLOPS)) for law in (RECIPE.transfer.lr, RECIPE.transfer.batch_tokens))


def bowl(rate: float, batch: float) -> Callable[[Run], float]:
    """A loss whose best rate grows with the root of the batch, least at `rate` and `batch` times the recipe's."""

    def loss(run: Run) -> float:
        wide = math.log2(run.train.batch_tokens / BATCH / batch)
        fast = math.log2(run.train.optimizer.lr / RATE / rate)
        return 2 + 0.02 * (fast - wide / 2) ** 2 + 0.01 * wide**2

    return loss


def settled(loss: Callable[[Run], float], lost: Callable[[Run], bool] = lambda run: False) -> tuple[Recipe, int, list]:
    """The recipe that is found, the number of different runs it took, and what was said."""
    seen: set[Run] = set()
    said: list[str] = []

    def carry_out(tries: Ladder) -> dict[Run, float]:
        seen.update(tries.runs)
        return {run: loss(run) for run in tries.runs if not lost(run)}

    return settle(RECIPE, MODEL, FLOPS, carry_out, said.append), len(seen), said


@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_the_best_rate_is_found_beyond_the_first_edge(rate: float) -> None:
    batch = RECIPE.batch_tokens(FLOPS) / BATCH

    def steep(run: Run) -> float:
        return 2 + 5 * (bowl(rate, batch)(run) - 2)

    found, runs, said = settled(steep)
    assert found.lr_factor == pytest.approx(rate, rel=0.01)
    assert found.batch_tokens(FLOPS) == RECIPE.batch_tokens(FLOPS)
    assert not said and runs <= 8


def test_of_rates_that_seeds_could_swap_the_lowest_is_taken() -> None:
    found, _, _ = settled(lambda run: 2 + (0.1 if run.train.optimizer.lr < 0.4 * RATE else 0.0))
    assert found.lr_factor == 0.5


@pytest.mark.parametrize(("steep", "moved"), [(0.003, 1.0), (0.02, 4.0)])
def test_the_batch_moves_only_for_more_than_noise(steep: float, moved: float) -> None:
    planned = RECIPE.batch_tokens(FLOPS)

    def loss(run: Run) -> float:
        return 2 + steep * (math.log2(run.train.batch_tokens / planned) - 2) ** 2

    found, _, _ = settled(loss)
    assert found.batch_tokens(FLOPS) == moved * planned


def test_a_best_that_runs_away_is_taken_at_the_last_edge_and_said() -> None:
    found, _, said = settled(bowl(100.0, 1.0))
    assert found.lr_factor >= 4.0
    assert any("learning rate is at its edge" in line for line in said)


def test_what_diverges_is_no_edge() -> None:
    found, _, _ = settled(bowl(0.9, 1.0), lost=lambda run: run.train.optimizer.lr > 1.5 * RATE)
    assert found.lr_factor in (0.5, 1.0)
    with pytest.raises(UserError, match="every run of the sweep of lr diverged"):
        settled(bowl(1.0, 1.0), lost=lambda run: True)


def test_planned_runs_halve_and_double_rate_and_then_batch() -> None:
    rates, batches = sweep(RECIPE, MODEL, FLOPS)
    runs = rates.runs + batches.runs
    assert (len(rates.runs), len(batches.runs)) == (4, 2)
    assert (len({run.train.optimizer.lr for run in runs}), len({run.train.batch_tokens for run in runs})) == (4, 3)
    assert all(run.flops == pytest.approx(FLOPS, rel=0.02) for run in runs)
