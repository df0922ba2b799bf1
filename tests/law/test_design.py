"""Which run next: closed forms of linear models, the optimum designs of the textbooks, and properties of any plan."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from nachim.law import LAWS, Candidates, Fit, Observations, Study, fit, next_runs, study
from nachim.law.belief import LEAST_NOISE, View, alike, kriging, split
from nachim.law.design import Belief, Target, basins, believe, greedy, mixed, settled, sought
from nachim.spec.error import UserError
from tests.law.ladders import TRUTH, ladder

SIGMA = 0.1


def polynomial(degree: int, t: np.ndarray) -> np.ndarray:
    return np.vander(t, degree + 1, increasing=True)


def belief_of(degree: int, t: np.ndarray, goal: float, misfit: float = 0.0, seen: np.ndarray | None = None) -> Belief:
    """The belief of a polynomial with a wide prior over candidates at `t` and the target at `goal`."""
    sites = np.append(t, goal)
    seen = np.empty(0) if seen is None else seen
    past, slopes = kriging(
        polynomial(degree, seen),
        polynomial(degree, sites),
        alike((seen,), (seen,)),
        alike((seen,), (sites,)),
        misfit,
        np.full(len(seen), SIGMA),
        np.full(degree + 1, 1e3),
    )
    view = View((sites,), np.zeros(len(sites)), past, slopes, misfit, SIGMA, 1.0)
    return mixed((view,), [(np.eye(1), None)], len(t))


def repeated(t: np.ndarray, times: int, cost: np.ndarray | None = None) -> tuple[np.ndarray, Candidates]:
    every = np.tile(t, times)
    price = np.ones(len(every)) if cost is None else np.tile(cost, times)
    return every, Candidates(np.ones(len(every)), np.ones(len(every)), price)


def frequencies(t: np.ndarray, chosen: list[int]) -> dict[float, float]:
    places, counts = np.unique(t[chosen], return_counts=True)
    return dict(zip(places.round(3).tolist(), (counts / counts.sum()).tolist(), strict=True))


def test_the_posterior_is_that_of_bayesian_regression():
    rng = np.random.default_rng(0)
    seen, sites, wide = rng.standard_normal((9, 3)), rng.standard_normal((5, 3)), np.array([1.0, 2.0, 30.0])
    noise = rng.uniform(0.1, 0.3, 9)
    past, slopes = kriging(seen, sites, np.eye(9), np.zeros((9, 5)), 0.0, noise, wide)
    textbook = np.linalg.inv(np.diag(wide**-2.0) + (seen / noise[:, None] ** 2).T @ seen)
    assert slopes.T @ slopes - past.T @ past == pytest.approx(sites @ textbook @ sites.T, rel=1e-9)


def test_the_posterior_with_a_misfit_is_that_of_conditioning_one_joint_gaussian():
    rng = np.random.default_rng(1)
    t, sites, wide, misfit = rng.uniform(-2, 2, 8), rng.uniform(-4, 4, 4), np.array([1.0, 2.0]), 0.3
    both = np.concatenate([t, sites])
    basis = polynomial(1, both)
    joint = basis @ np.diag(wide**2) @ basis.T + misfit**2 * alike((both,), (both,))
    observed = joint[:8, :8] + SIGMA**2 * np.eye(8)
    expected = joint[8:, 8:] - joint[8:, :8] @ np.linalg.solve(observed, joint[:8, 8:])
    past, slopes = kriging(
        basis[:8], basis[8:], alike((t,), (t,)), alike((t,), (sites,)), misfit, np.full(8, SIGMA), wide
    )
    view = View((sites,), np.zeros(4), past, slopes, misfit, SIGMA, 1.0)
    assert view.covariance == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_rank_one_updates_give_the_variance_of_refitting_with_the_runs_chosen():
    rng = np.random.default_rng(2)
    t = rng.uniform(-1, 1, 12)
    _, runs = repeated(t, 1)
    steps = greedy(belief_of(2, t, 3.0, misfit=0.05), runs, -1.0, 5.0, by_cost=True)
    assert len(steps) == 5
    for count in range(1, 6):
        chosen = t[[step[0] for step in steps[:count]]]
        assert steps[count - 1][2] == pytest.approx(belief_of(2, t, 3.0, 0.05, seen=chosen).open, rel=1e-5)


def test_what_all_candidates_leave_is_where_the_greedy_plan_ends():
    t, runs = repeated(np.linspace(-1, 1, 7), 2)
    belief = belief_of(1, t, 2.0, 0.3, seen=np.array([-0.5, 0.0, 0.4]))
    steps = greedy(belief, runs, -1.0, np.inf, by_cost=False)
    assert len(steps) == 14
    assert belief.least == pytest.approx(steps[-1][2], rel=1e-6)


@pytest.mark.parametrize(
    ("degree", "wanted"), [(1, {-1.0: 1 / 4, 1.0: 3 / 4}), (2, {-1.0: 1 / 7, 0.0: 3 / 7, 1.0: 3 / 7})]
)
def test_extrapolation_designs_are_those_of_hoel_and_levine(degree: int, wanted: dict[float, float]):
    """Ann. Math. Stat. 35 (1964): Chebyshev points, each as often as its Lagrange polynomial is large at the target."""
    t, runs = repeated(np.linspace(-1, 1, 9), 80)
    steps = greedy(belief_of(degree, t, 2.0), runs, -1.0, 100.0, by_cost=True)
    found = frequencies(t, [step[0] for step in steps])
    for spot, share in wanted.items():
        assert found[spot] == pytest.approx(share, abs=0.04)
    assert sum(found[spot] for spot in wanted) > 0.93


def test_where_one_end_costs_more_it_is_run_less_by_the_root_of_its_cost():
    """min of sum l²/n at a total cost: n ∝ |l|/sqrt(c), here l = -1/2 at c = 1 and 3/2 at c = 9."""
    t, runs = repeated(np.array([-1.0, 1.0]), 80, cost=np.array([1.0, 9.0]))
    steps = greedy(belief_of(1, t, 2.0), runs, -1.0, 400.0, by_cost=True)
    assert frequencies(t, [step[0] for step in steps])[1.0] == pytest.approx(0.5, abs=0.03)


def test_a_misfit_keeps_a_plan_from_repeating_the_same_runs():
    t, runs = repeated(np.linspace(-1, 1, 9), 20)
    exact, bent = (
        frequencies(t, [step[0] for step in greedy(belief_of(1, t, 4.0, misfit), runs, -1.0, 20.0, True)])
        for misfit in (0.0, 0.5)
    )
    assert len(exact) <= 3
    assert len(bent) > len(exact)


def test_where_laws_disagree_a_run_that_tells_them_apart_is_worth_most():
    flat = np.zeros((3, 4))
    views = tuple(
        View((np.zeros(4),), np.array(mean), flat, 1e-3 * flat[:1], 0.0, 0.01, 0.5)
        for mean in ([0.0, 0.1, 0.0, 0.2], [0.0, -0.1, 0.05, -0.2])
    )
    belief = mixed(views, [(np.eye(1), None)] * 2, 3)
    assert belief.open == pytest.approx(0.04)
    assert int(np.argmax(belief.gain)) == 1
    assert belief.open - belief.gain[1] == pytest.approx(0.04 * 0.0001 / (0.01 + 0.0001))


def test_misfit_and_noise_are_told_apart():
    rng = np.random.default_rng(3)
    u, v = rng.uniform(-3, 3, (2, 150))
    near = alike((u, v), (u, v))
    rough = np.linalg.cholesky(near + 1e-9 * np.eye(150)) @ rng.standard_normal(150)
    basis = np.stack([np.ones(150), u, v], axis=1)
    misfit, noise = split(basis, near, 0.01 * rough + 0.002 * rng.standard_normal(150), np.ones(150))
    assert 0.005 < misfit < 0.02 and noise == pytest.approx(0.002, rel=0.25)
    misfit, noise = split(basis, near, 0.02 * rng.standard_normal(150), np.ones(150))
    assert misfit < 0.01 and noise == pytest.approx(0.02, rel=0.15)
    assert split(basis, near, np.zeros(150), np.ones(150))[1] < 10 * LEAST_NOISE


@pytest.fixture(scope="module")
def reading() -> Study:
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.003)
    return study(obs.subset(obs.flops < 3e15), draws=40)


def offer(factor: float = 1.0) -> Candidates:
    x, ratio = (np.array(each) for each in zip(*itertools.product((1e6, 6e6, 3e7, 1e8), (5, 20, 80)), strict=True))
    return Candidates(x * factor, ratio * x * factor, 6 * ratio * x**2)


TARGET = Target(x=3e8, tokens=6e9)


def test_plans_do_not_depend_on_units(reading: Study):
    here = next_runs(reading, offer(), TARGET)
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.003)
    obs = obs.subset(obs.flops < 3e15)
    scaled = study(Observations(tokens=1e3 * obs.tokens, params=1e3 * obs.params, loss=2.5 * obs.loss), draws=40)
    there = next_runs(scaled, offer(1e3), Target(x=3e11, tokens=6e12))
    assert [pick.index for pick in there.picks[:6]] == [pick.index for pick in here.picks[:6]]
    assert there.percent == pytest.approx(here.percent, rel=1e-3)
    dearer = Candidates(offer().x, offer().tokens, 7 * offer().cost)
    assert next_runs(reading, dearer, TARGET).order.tolist() == here.order.tolist()
    turned = Candidates(*(column[::-1] for column in (offer().x, offer().tokens, offer().cost)))
    assert next_runs(reading, turned, TARGET).picks[0].index == 11 - here.picks[0].index


def test_the_stop_curve_falls_and_ends_where_it_was_asked_to(reading: Study):
    whole = next_runs(reading, offer(), TARGET)
    widths = [whole.percent] + [pick.percent for pick in whole.picks]
    assert all(later <= sooner for sooner, later in itertools.pairwise(widths))
    assert whole.floor <= whole.least <= widths[-1] * (1 + 1e-9) <= 1.03 * whole.least
    assert all(pick.spent > 0 for pick in whole.picks)
    assert whole.helps and "at the target costs" in whole.why
    middle = float(np.sqrt(whole.percent * whole.least))
    partly = next_runs(reading, offer(), TARGET, within=middle)
    assert partly.picks[-1].percent <= middle < (partly.picks[-2].percent if len(partly.picks) > 1 else whole.percent)
    spends = [1e15, 1e16, 1e17]
    bought = [next_runs(reading, offer(), TARGET, budget=spend) for spend in spends]
    assert all(advice.picks[-1].spent <= spend for advice, spend in zip(bought, spends, strict=True))
    reached = [advice.picks[-1].percent for advice in bought]
    assert reached == sorted(reached, reverse=True)


def test_an_allocation_moves_as_finite_differences_of_the_law_say(reading: Study):
    for one in reading.fits.values():
        u, v, coefficients, mean = sought(one, one.point, Target("allocation", flops=1e18))
        jacobian = coefficients @ one.law.expand(one.point, u, v)[1].T
        for each in range(one.law.size):
            moved = [one.point.copy(), one.point.copy()]
            moved[0][each] -= 1e-5
            moved[1][each] += 1e-5
            x = [one.law.allocation(one.law.coefficients(z, one.sample.units), 1e18, one.scale)[0] for z in moved]
            assert jacobian[0, each] == pytest.approx(np.log(x[1] / x[0]) / 2e-5, rel=0.02, abs=1e-4)
        assert mean[0] == pytest.approx(np.log(one.allocation(1e18)[0]))
    advice = next_runs(reading, offer(), Target("allocation", flops=1e18))
    assert advice.floor == 0 and advice.picks[-1].percent < advice.percent


def test_basins_weigh_by_the_likelihood_of_their_residuals(reading: Study):
    one = reading.fit
    best, *_ = one.certificate.basins
    rivals = (best, replace(best, objective=1.05 * best.objective), replace(best, objective=2 * best.objective))
    found = basins(replace(one, certificate=replace(one.certificate, basins=rivals)))
    assert len(found) == 2
    assert found[1][1] / found[0][1] == pytest.approx(1.05 ** (-one.n / 2))
    assert sum(weight for _, weight in found) == pytest.approx(1)


def sizeless(one: Fit) -> np.ndarray:
    """A point whose best model has next to no size: the term in x all but zero, and all but constant."""
    point = one.point.copy()
    point[1], point[3] = -30.0, one.law.low[3]
    assert one.law.allocation(one.law.coefficients(point, one.sample.units), 1e18, one.scale)[0] < 1e-9
    return point


def test_a_basin_whose_best_model_has_no_size_does_not_make_a_target_unknowable(reading: Study):
    one = reading.fits["chinchilla"]
    best, *_ = one.certificate.basins
    split = replace(one, certificate=replace(one.certificate, basins=(best, replace(best, point=sizeless(one)))))
    both = replace(reading, fit=split, fits={**reading.fits, "chinchilla": split})
    loss = next_runs(both, offer(), Target(flops=1e18))
    assert loss.helps and loss.least < loss.percent < 100
    model = next_runs(both, offer(), Target("allocation", flops=1e18))
    assert model.helps and model.picks


def test_a_loss_at_a_compute_is_that_of_the_model_the_law_would_build(reading: Study):
    best = settled(Target(flops=1e18), reading.fit, offer())
    assert (best.x, best.tokens) == pytest.approx(reading.fit.allocation(1e18))
    here, there = (next_runs(reading, offer(), target) for target in (Target(flops=1e18), best))
    assert here.percent == there.percent and here.picks == there.picks
    one = reading.fit
    flat = replace(one, coefficients=one.law.coefficients(sizeless(one), one.sample.units))
    held = settled(Target(flops=1e18), flat, offer())
    logs = one.sample.inputs
    most = float(np.exp(logs[1] - logs[0]).max()) * one.sample.units.tokens / one.sample.units.x
    assert held.tokens / held.x == pytest.approx(max(most, 80)) and 6 * held.x * held.tokens == pytest.approx(1e18)


def test_the_width_now_is_that_of_the_forecast(reading: Study):
    advice = next_runs(reading, offer(), TARGET)
    _, low, high = reading.predict(TARGET.x, TARGET.tokens)
    assert advice.percent == pytest.approx(100 * (np.sqrt(high / low) - 1))
    assert advice.floor == pytest.approx(100 * np.expm1(1.6448536 * reading.noise))
    found = reading.allocation(1e18)
    model = next_runs(reading, offer(), Target("allocation", flops=1e18))
    assert model.percent == pytest.approx(100 * (np.sqrt(found.x_interval[1] / found.x_interval[0]) - 1))


def test_what_a_trunk_has_come_already_is_not_paid_again():
    runs = Candidates(
        np.ones(4), np.array([1, 2, 4, 4.0]), np.array([1, 2, 4, 4.0]), np.array(["a", "a", "a", "b"]),
        np.array([0.8, 1.6, 3.2, 3.2]), {"a": 0.8},
    )  # fmt: skip
    assert runs.charged() == pytest.approx([0.2, 1.2, 3.2, 4.0])
    assert runs.charged([2]) == pytest.approx([0.2, 0.4, 0.8, 4.0])


def test_what_cannot_help_is_said_in_a_sentence(reading: Study):
    near = Candidates(np.array([3e5]), np.array([3e6]), np.array([5.4e12]))
    useless = next_runs(reading, near, TARGET)
    assert not useless.helps and "no candidate helps" in useless.why and "nearer to the target" in useless.why
    known = next_runs(reading, offer(), TARGET, within=1000)
    assert not known.picks and "already" in known.why
    far = next_runs(reading, offer(), TARGET, within=1e-3)
    assert "out of reach" in far.why
    with pytest.raises(UserError, match="positive number"):
        next_runs(reading, offer(), TARGET, within=-1)
    for wrong in (
        {},
        {"flops": 1e18, "x": 1e8},
        {"x": 1e8},
        {"flops": -1.0},
        {"what": "allocation", "x": 1.0, "tokens": 1.0},
    ):
        with pytest.raises(UserError):
            Target(**wrong)
    for column in ("x", "tokens", "cost"):
        with pytest.raises(UserError, match=f"candidate 2: {column}"):
            Candidates(**{name: np.array([1.0, -1.0 if name == column else 1.0]) for name in ("x", "tokens", "cost")})


def test_several_shapes_count_by_the_mean_of_their_variances(reading: Study):
    shapes = [Target(x=3e8, tokens=6e9), Target(x=1e8, tokens=4e10)]
    both = believe(reading, offer(), Target(x=np.array([3e8, 1e8]), tokens=np.array([6e9, 4e10])))
    alone = [believe(reading, offer(), target) for target in shapes]
    assert both.open == pytest.approx(np.mean([each.open for each in alone]))
    assert both.gain == pytest.approx(np.mean([each.gain for each in alone], axis=0))


def test_the_truth_lies_within_the_width_that_a_plan_promised():
    """Of 12 ladders extended by a plan, the law fitted to both must be within the promised 90 % width in 9 or more."""
    law, hits = LAWS["chinchilla"], 0
    truth = float(law.predict(TRUTH["chinchilla"], 3e8, 6e9))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        obs = ladder(law, rng, 0.004)
        obs = obs.subset(obs.flops < 3e15)
        advice = next_runs(study(obs, law="chinchilla", draws=40), offer(), TARGET, budget=1e17)
        picked = [pick.index for pick in advice.picks]
        x, tokens = offer().x[picked], offer().tokens[picked]
        more = law.predict(TRUTH["chinchilla"], x, tokens) * np.exp(0.004 * rng.standard_normal(len(x)))
        both = Observations(
            tokens=np.append(obs.tokens, tokens), params=np.append(obs.params, x), loss=np.append(obs.loss, more)
        )
        found = float(fit(both, law, "params").predict(3e8, 6e9))
        hits += abs(100 * (found / truth - 1)) <= advice.picks[-1].percent
    assert hits >= 9
