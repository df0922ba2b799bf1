from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest

from nachim.law import LAWS, Observations, concat
from nachim.law.flag import conventions, find, inside, seen, without
from tests.law.ladders import TRUTH, ladder

LAW = LAWS["chinchilla"]


def runs(noise: float = 0.003, seed: int = 0) -> Observations:
    return ladder(LAW, np.random.default_rng(seed), noise)


def spoilt(row: int, factor: float, obs: Observations | None = None) -> Observations:
    """One run's loss times `factor`; rows are counted from 1."""
    obs = obs or runs()
    return dataclasses.replace(obs, loss=np.where(np.arange(len(obs)) == row - 1, obs.loss * factor, obs.loss))


def test_sound_runs_are_not_flagged():
    """The threshold allows 0.05 flags a table of normal noise, of each of two tests."""
    flagged = sum(len(find(runs(seed=seed))) for seed in range(20))
    assert flagged <= 3
    assert find(runs(0.0)) == ()


@pytest.mark.parametrize(("factor", "side"), [(1.05, "above"), (0.95, "below")])
def test_a_run_off_its_law_and_its_neighbours_is_flagged(factor, side):
    obs = spoilt(9, factor)
    (flag,) = [each for each in find(obs) if each.row == 9]
    assert flag.percent == pytest.approx(100 * (factor - 1), abs=2)
    assert side in str(flag)
    assert len(find(obs)) == 1


def test_a_law_that_bends_wrongly_flags_no_one():
    """A surface that no law here describes, without noise: all runs near one another are off by the same."""
    x = np.repeat(np.geomspace(1e7, 1e9, 12), 12)
    tokens = np.tile(np.geomspace(1e9, 1e11, 12), 12)
    loss = LAW.predict(TRUTH["chinchilla"], x, tokens) * (1 + 0.05 * np.sin(2 * np.log10(x)))
    assert find(Observations(tokens=tokens, params=x, loss=loss)) == ()


def test_loss_that_rises_with_tokens_is_under_tuned():
    obs = spoilt(12, 1.2)
    flag = find(obs)[0]
    assert (flag.row, flag.kind) == (12, "under-tuned")
    assert "of row 11, of the same scale and 2x fewer tokens" in flag.reason


def test_a_run_worse_than_much_cheaper_ones_has_diverged():
    flag = next(each for each in find(spoilt(24, 2.5)) if each.row == 24)
    assert flag.kind == "diverged"
    assert "a tenth of its compute" in flag.reason


def test_a_badly_tuned_run_of_a_sweep_is_measured_against_the_best():
    obs = runs(0.001)
    swept = concat([dataclasses.replace(obs, lr=np.full(30, lr), loss=obs.loss * up) for lr, up in ((1, 1), (2, 1.03))])
    flags = find(swept)
    assert {flag.row for flag in flags if flag.kind == "under-tuned"} == set(range(31, 61))
    assert "3 % above that of row 1, of the same scale and tokens" in str(flags[0])


def test_a_corpus_is_compared_with_itself_and_a_shape_with_all():
    obs = runs(0.001)
    corpora = concat(
        [
            dataclasses.replace(obs, loss=obs.loss * up, group=[name] * 30)
            for name, up in zip("ab", (1, 1.3), strict=True)
        ]
    )
    assert find(corpora) == ()
    shapes = dataclasses.replace(spoilt(9, 1.05), group=[f"{x:.0f}" for x in obs.params])
    assert 9 in {flag.row for flag in find(shapes)}


def test_repeated_data_may_lose():
    obs = spoilt(12, 1.2)
    repeated = dataclasses.replace(obs, extra={"unique_tokens": obs.tokens / 4})
    assert find(repeated) == ()


def test_a_row_twice_is_said_once():
    obs = runs()
    (flag,) = find(concat([obs, obs.subset(np.array([4]))]))
    assert str(flag) == "row 31: duplicate, the same as row 5 in every column: that run counts twice"


def test_a_flagged_row_keeps_its_number_and_loses_its_weight():
    obs = spoilt(9, 1.05)
    left = without(obs, find(obs))
    assert left.weight[8] == 0
    assert len(left) == 30
    assert 9 not in {flag.row for flag in find(left)}


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (
            np.where(np.arange(30) < 4, 2, 6),
            r"4 as 2·N·D, the forward pass alone and 26 as 6·N·D \(see rows 1, 2, 3, 4\)",
        ),
        (np.where(np.arange(30) == 7, 8, 6), r"29 as 6·N·D and 1 as 8·N·D, activations computed twice \(see row 8\)"),
        (np.full(30, 2.0), "all budgets in 'flops' are 2·N·D, the forward pass alone: multiply them by 3"),
    ],
)
def test_budgets_counted_otherwise_are_one_sentence(ratio, said):
    obs = runs()
    (sentence,) = conventions(dataclasses.replace(obs, flops=ratio * obs.params * obs.tokens))
    assert re.search(said, sentence)


def test_budgets_of_one_convention_are_nothing_to_say():
    obs = runs()
    assert conventions(obs) == []
    attention = 6 * obs.params * obs.tokens * (1 + 1e5 / obs.params)
    assert conventions(dataclasses.replace(obs, flops=attention)) == []
    assert conventions(Observations(obs.tokens, obs.loss, flops_per_token=7 * obs.params)) == []


def test_a_target_inside_the_data_and_runs_seen_before():
    obs = runs()
    assert "lies inside the fitted runs" in str(inside(obs, obs.flops.max()))
    assert inside(obs, 2 * obs.flops.max()) is None
    assert "3 of the runs held out are fitted too (row 1 first)" in seen(obs, obs.subset(np.arange(3)))[0]
    within = dataclasses.replace(obs, loss=obs.loss * 1.01).subset(np.arange(3))
    assert "3 of 3 runs held out lie inside the fitted budgets" in seen(obs, within)[0]
    dearer = Observations(tokens=10 * obs.tokens.max() * np.ones(2), loss=np.ones(2), params=1e9 * np.ones(2))
    assert seen(obs, dearer) == []


def test_flags_load_no_torch():
    code = "import sys, nachim.law.flag; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
