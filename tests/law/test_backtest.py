from __future__ import annotations

import numpy as np
import pytest

from nachim.law import LAWS, Observations, concat, fit
from nachim.law.backtest import BETTER, CUTOFFS, Trial, backtest, data_sets, pooled, settings, split, trial
from nachim.spec.error import UserError
from tests.law.ladders import ladder


def made(seed: int = 0, noise: float = 0.003, group: str | None = None, times: float = 1.0) -> Observations:
    obs = ladder(LAWS["coupled"], np.random.default_rng(seed), noise)
    named = None if group is None else np.full(len(obs), group)
    return Observations(obs.tokens, times * obs.loss, params=obs.params, group=named)


def test_the_dearest_budgets_are_held_out_whole_and_never_fitted():
    obs = made()
    for cutoff in CUTOFFS:
        cheap, dear = split(obs, cutoff)
        assert dear.sum() >= max(2, 0.1 * len(obs))
        assert obs.flops[cheap].max() < 0.95 * obs.flops[dear].min()
        assert not (obs.flops[~dear] > 0.95 * obs.flops[dear].min()).any()
    sizes = [split(obs, cutoff)[0].sum() for cutoff in CUTOFFS]
    assert sizes[0] > sizes[1] > sizes[2] >= 0.5 * sizes[0]


def test_a_trial_measures_the_forecast_it_describes():
    obs = made()
    found = trial(settings("one", obs)[0], "chinchilla")
    cheap, dear = split(obs)
    assert (found.fitted, found.held_out) == (cheap.sum(), dear.sum())
    assert found.reach == pytest.approx(obs.flops.max() / obs.flops[cheap].max())
    assert found.chosen == "chinchilla"
    alone = fit(obs.subset(cheap), LAWS["chinchilla"], "params").predict(obs.params[dear], obs.tokens[dear])
    assert found.alone == pytest.approx(100 * np.mean(np.abs(alone / obs.loss[dear] - 1)))
    assert 0 < found.mape != found.alone
    assert 0 <= found.coverage90 <= 100
    assert found.seconds > 0


def test_what_cannot_be_forecast_has_its_reason():
    obs = made()
    one_budget = Observations(1e20 / obs.params, obs.loss, params=obs.params)
    assert "one compute budget" in trial(settings("flat", one_budget)[0], "auto").reason
    few = obs.subset(np.argsort(obs.flops)[::4])
    found = trial(settings("few", few)[0], "auto", 0.5)
    assert "cannot determine" in found.reason
    assert np.isnan(found.mape)


def test_repeated_runs_and_swept_ones_are_left_out_and_it_is_said():
    obs = made()
    swept = Observations(
        np.repeat(obs.tokens, 3), np.repeat(obs.loss, 3) * np.tile([1.01, 1.0, 1.02], len(obs)),
        params=np.repeat(obs.params, 3), lr=np.tile([1e-4, 1e-3, 1e-2], len(obs)),
        extra={"unique_tokens": np.where(np.arange(3 * len(obs)) < 6, 1.0, 1e30)},
    )  # fmt: skip
    (found,) = settings("swept", swept)
    assert len(found.runs) == len(obs) - 2
    assert sorted(found.runs.loss) == pytest.approx(sorted(obs.loss[2:]))
    assert len(found.notes) == 2
    assert "repeat their data" in found.notes[0]


def test_groups_that_one_law_cannot_describe_are_sets_of_their_own():
    alike = concat([made(0, group="a"), made(1, group="b")])
    assert [each.name for each in settings("x", alike)] == ["x"]
    apart = concat([made(0, group="a"), made(1, group="b", times=1.2)])
    assert [each.name for each in settings("x", apart)] == ["x/a", "x/b"]


def test_a_folder_is_read_whole_and_what_cannot_be_read_is_said(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    made(0).write(tmp_path / "one" / "observations.csv")
    (tmp_path / "two" / "observations.csv").write_text("a,b\n1,2\n")
    (tmp_path / "one" / "notes.csv").write_text("not a table of runs\n")
    sets, skipped = data_sets(tmp_path)
    assert [each.name for each in sets] == ["one"]
    assert len(skipped) == 1
    assert "two" in skipped[0]
    with pytest.raises(UserError, match="is not a folder"):
        data_sets(tmp_path / "none")
    with pytest.raises(UserError, match="holds no table"):
        data_sets(tmp_path / "two")


def test_pooling_counts_runs_and_poor_choices():
    def one(data: str, law: str, mape: float, alone: float, held: int, inside: float) -> Trial:
        return Trial(data, law, law, 1.0, 20, held, 4.0, mape, alone, inside, 2 * mape, 0.1)

    trials = [
        one("a", "auto", 0.5, 0.0, 10, 90.0), one("a", "chinchilla", 1.0, 1.0, 10, 0.0),
        one("a", "coupled", 0.4, 0.45, 10, 0.0), one("b", "auto", 1.0, 0.0, 30, 50.0),
        one("b", "chinchilla", 0.1, 0.1, 30, 0.0),
    ]  # fmt: skip
    found = pooled(trials, "auto", 1.0)
    assert (found.sets, found.held_out, found.median, found.worst) == (2, 40, 0.75, 1.0)
    assert found.coverage90 == pytest.approx((10 * 90 + 30 * 50) / 40)
    assert found.least_coverage == 50
    assert found.poor == sum(mape > BETTER * least for mape, least in ((0.5, 0.45), (1.0, 0.1)))
    assert pooled(trials, "auto", 0.5) is None


def test_every_law_is_tried_at_every_cut_off():
    seen: list[Trial] = []
    trials = backtest(settings("one", made()), ("auto", "coupled"), 0, seen.append)
    assert trials == seen
    assert [(each.law, each.cutoff) for each in trials] == [
        (law, cutoff) for cutoff in CUTOFFS for law in ("auto", "coupled")
    ]
    assert trials[0].mape < 3
    assert trials[0].median_width < 20
