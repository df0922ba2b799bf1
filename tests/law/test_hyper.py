from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from nachim.law import Observations, concat, read
from nachim.law.bowl import Bowl
from nachim.law.hyper import hyper
from nachim.law.observe import of
from nachim.law.regret import comparison, grid_regret, leave_largest_out, leave_one_out
from nachim.law.sweep import sweep_of
from nachim.law.transfer import PUBLISHED, batch_opt, lr_opt, published_exponents
from nachim.spec.error import UserError
from tests.law.swept import BATCH, CELLS, LR, best, sweep_runs

STEPLAW = Path(__file__).parents[3] / "shared" / "data" / "scaling" / "steplaw" / "observations.csv"


@pytest.fixture(scope="module")
def exact():
    return hyper(sweep_of(sweep_runs()), draws=20)


@pytest.fixture(scope="module")
def noisy():
    return hyper(sweep_of(sweep_runs(noise=1e-3)), draws=60)


def test_a_bowl_has_the_derivatives_of_finite_differences():
    rng = np.random.default_rng(0)
    point = np.concatenate(
        [rng.normal(0, 0.4, 9), [-4, -5, -4.5], [1.2, -0.7, 1e-3], rng.normal(0, 0.5, 6), [0.1, -0.2]]
    )
    z, design = rng.normal(0, 1, (40, 3)), np.stack([np.ones(40), *rng.normal(0, 1, (2, 40))], axis=1)
    _, slopes = Bowl(3, point).slopes(z, design)
    steps = np.eye(len(point)) * 1e-6
    ends = [Bowl(3, point + step).excess(z, design) - Bowl(3, point - step).excess(z, design) for step in steps]
    np.testing.assert_allclose(slopes, np.array(ends).T / 2e-6, atol=1e-8)


def test_a_bowl_is_zero_at_its_centre_and_positive_elsewhere():
    rng = np.random.default_rng(1)
    bowl = Bowl(2, np.concatenate([rng.normal(0, 0.3, 6), [-4, -4, 2.0, -1.5, 0.4, -0.8, 0.1, 0.1]]))
    design = np.array([[1.0, 0.3, -0.2]])
    centre = design @ bowl.centre.T
    assert bowl.excess(centre, design)[0] == 0
    away = centre + rng.normal(0, 3, (200, 2))
    assert bowl.excess(away, np.repeat(design, 200, axis=0)).min() > 0
    found = minimize(lambda z: bowl.excess(z[None], design)[0], centre[0] + 1, method="Nelder-Mead")
    np.testing.assert_allclose(found.x, centre[0], atol=1e-3)


def test_noise_free_sweeps_give_their_own_powers_back(exact):
    for name, truth in (("lr", LR), ("batch_tokens", BATCH)):
        law = exact.laws[name]
        assert law.plane.model == pytest.approx(truth[1], abs=1e-3)
        assert law.plane.data == pytest.approx(truth[2], abs=1e-3)
        assert float(law.plane(1e9, 3e10)) == pytest.approx(best(truth, 1e9, 3e10), rel=3e-3)
        assert law.determined == {"model": True, "data": True}
        assert law.trusted


def test_the_band_costs_what_it_says(exact):
    """At the true surface: e^(p) - 1 - p along the rate, at the batch that is best."""
    band = exact.bands(1e8, 3e9, 0.25)["lr"]
    for end in (band.low, band.high):
        p = 0.8 * np.log(end / best(LR, 1e8, 3e9))
        assert 100 * np.expm1(0.02 * (np.expm1(p) - p)) == pytest.approx(0.25, rel=0.02)
    assert band.low < band.interval90[0] <= band.best <= band.interval90[1] < band.high


def test_noisy_sweeps_have_intervals_that_hold_the_truth(noisy):
    for name, truth in (("lr", LR), ("batch_tokens", BATCH)):
        band = noisy.bands(1e9, 3e10)[name]
        assert band.interval90[0] / 1.15 < best(truth, 1e9, 3e10) < band.interval90[1] * 1.15
    assert 0.5e-3 < noisy.noise < 1.5e-3
    mean, high = noisy.cost_of_following(1e9, 3e10)
    assert 0 < mean < high < 1
    assert noisy.stretch is not None
    assert (noisy.stretch >= 1).all()


def test_what_runs_leave_open_is_the_priors_and_says_so():
    laws = hyper(sweep_of(sweep_runs(CELLS[:3], noise=1e-3)), draws=60)
    prior, sd = published_exponents("lr")
    law = laws.laws["lr"]
    assert law.determined == {"model": False, "data": True}
    assert law.plane.model == pytest.approx(prior[0], abs=1e-3)
    low, high = law.interval90["model"]
    assert high - low == pytest.approx(2 * 1.645 * sd[0], rel=0.4)
    assert laws.stretch is None


def test_the_prior_is_the_published_laws():
    np.testing.assert_allclose(published_exponents("lr")[0], [(-0.713 - 0.125) / 2, (0.307 - 0.125) / 2])
    np.testing.assert_allclose(published_exponents("batch_tokens")[0], [0.3271 / 3, (0.571 + 0.3271 + 0.383) / 3])
    deepseek = PUBLISHED["deepseek"]
    assert deepseek.lr(1e9, 1e11) == pytest.approx(float(lr_opt(6e20)))
    assert deepseek.batch_tokens(1e9, 1e11) == pytest.approx(float(batch_opt(6e20)))
    assert PUBLISHED["steplaw"].batch_tokens(1e9, 1e11) == pytest.approx(0.58 * 1e11**0.571)


def test_a_batch_never_swept_has_no_law():
    laws = hyper(sweep_of(sweep_runs(batches=(0,), noise=5e-4)), draws=20)
    assert laws.laws.keys() == laws.planes.laws.keys() == {"lr"}
    assert float(laws.planes.lr(1e8, 3e9)) == pytest.approx(best(LR, 1e8, 3e9), rel=0.3)


def test_weight_decay_gives_the_timescale():
    obs, tables = sweep_runs(noise=3e-4), []
    for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
        best_decay = 0.1 * (obs.tokens / 1e9) ** -0.25
        decay = factor * 0.1 * np.ones(len(obs))
        loss = obs.loss * np.exp(0.004 * np.log(decay / best_decay) ** 2)
        tables.append(of({**obs.columns(), "loss": loss, "weight_decay": decay}))
    laws = hyper(sweep_of(concat(tables)), draws=5)
    assert laws.laws["weight_decay"].plane.data == pytest.approx(-0.25, abs=0.05)
    tau = laws.timescale
    expected = best(BATCH, 1e8, 3e9) / (best(LR, 1e8, 3e9) * 0.1 * 3**-0.25 * 3e9)
    assert float(tau.plane(1e8, 3e9)) == pytest.approx(expected, rel=0.1)
    assert tau.plane.data == pytest.approx(0.5 - 0.25 + 0.25 - 1, abs=0.1)


def test_tokens_of_whole_steps_are_one_cell():
    obs = sweep_runs()
    tokens = obs.batch_tokens * np.round(obs.tokens / obs.batch_tokens)
    moved = Observations(tokens=tokens, loss=obs.loss, params=obs.params, lr=obs.lr, batch_tokens=obs.batch_tokens)
    assert len(np.unique(tokens)) > len(set(obs.tokens))
    assert len(sweep_of(moved).cells) == len(CELLS)


def test_regret_is_what_the_nearest_run_loses():
    sweep = sweep_of(sweep_runs(noise=1e-3))
    winners = np.array([sweep.z[sweep.cell == n][np.argmin(sweep.loss[sweep.cell == n])] for n in range(len(CELLS))])
    assert grid_regret(sweep, winners + 0.1).worst == 0
    far = grid_regret(sweep, winners - 50)
    assert far.outside == len(CELLS)
    assert np.isnan(far.interpolated).all()
    corner = [sweep.loss[sweep.cell == n][0] / sweep.loss[sweep.cell == n].min() for n in range(len(CELLS))]
    np.testing.assert_allclose(far.nearest, 100 * (np.array(corner) - 1))


def test_left_out_sweeps_are_advised_well(noisy):
    assert comparison(noisy)["refitted"].mean < 0.2
    assert leave_one_out(noisy)["refitted"].mean < 0.3
    largest = leave_largest_out(noisy)["refitted"]
    assert len(largest.nearest) == 3
    assert largest.mean < 0.3


def test_diverged_runs_are_left_out_and_counted():
    obs = sweep_runs()
    lost = obs.loss.copy()
    lost[[3, 40]] = 11.0
    sweep = sweep_of(of({**obs.columns(), "loss": lost}), unfinished=2)
    assert sweep.left_out == {"diverged": 4, "not positive": 0}
    assert len(sweep.loss) == len(obs) - 2


def test_an_optimum_at_the_edge_is_not_trusted():
    laws = hyper(sweep_of(sweep_runs(rates=(1, 2, 3, 4), noise=5e-4)), draws=10).laws
    assert laws["lr"].edges == len(CELLS)
    assert not laws["lr"].trusted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": lambda obs: np.full(len(obs), 1e-3)}, "every run has the learning rate 0.001"),
        ({"lr": lambda obs: np.where(np.arange(len(obs)) % 2, 1e-3, 2e-3)}, "at most 2 values"),
        ({"batch_tokens": lambda obs: obs.batch_tokens / 2048}, "looks like sequences; multiply"),
        ({"batch_tokens": lambda obs: obs.batch_tokens * 1e6}, "more than the .* tokens of the whole run"),
        (
            {"params": lambda obs: obs.params[:1].repeat(len(obs)), "tokens": lambda obs: 0 * obs.tokens + 1e9},
            "how it moves",
        ),
    ],
)
def test_what_cannot_be_fitted_is_said(change, said):
    obs = sweep_runs()
    columns = {**obs.columns(), **{name: make(obs) for name, make in change.items()}}
    columns.pop("flops")
    with pytest.raises(UserError, match=said):
        hyper(sweep_of(of(columns)), draws=2)


def test_missing_columns_are_named():
    obs = sweep_runs()
    with pytest.raises(UserError, match="needs a column 'batch_tokens'"):
        sweep_of(Observations(tokens=obs.tokens, loss=obs.loss, params=obs.params, lr=obs.lr))


@pytest.mark.skipif(not STEPLAW.exists(), reason="the published StepLaw grid is not on this machine")
def test_on_steplaws_grid_the_published_laws_cost_what_was_measured():
    """Earlier counts, made apart from this code, had 0.76 and 0.10 % for the two published laws."""
    fitted = hyper(sweep_of(read(STEPLAW)), draws=2)
    found = comparison(fitted)
    assert found["deepseek"].mean == pytest.approx(0.8, abs=0.1)
    assert found["steplaw"].mean == pytest.approx(0.1, abs=0.02)
    assert found["refitted"].mean < found["steplaw"].mean
    assert leave_largest_out(fitted)["refitted"].mean < 0.15
