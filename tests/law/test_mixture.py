"""The mixture law: noise-free recovery, scipy's minimum and derivatives, its best shares, intervals, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from nachim.law.mixing import Mixing
from nachim.law.mixture import DELTA, fit_mixture
from nachim.law.mixture_runs import MixtureRuns, read
from nachim.law.solve import huber
from nachim.spec.error import UserError

TWO = np.array([[0.1, 0.9], [0.3, 0.7], [0.5, 0.5], [0.7, 0.3], [0.9, 0.1]])
THREE = np.array(
    [
        [0.8, 0.1, 0.1],
        [0.1, 0.8, 0.1],
        [0.1, 0.1, 0.8],
        [0.4, 0.3, 0.3],
        [0.2, 0.5, 0.3],
        [0.55, 0.05, 0.4],
        [0.3, 0.4, 0.3],
    ]
)
TRUTH2 = ((1.2, 0.9, (-1.5, 0.3)), (1.6, 1.1, (0.2, -1.2)))
TRUTH3 = ((1.2, 0.9, (-1.5, 0.3, 0.1)), (1.6, 1.1, (0.2, -1.2, -0.3)), (0.9, 1.4, (0.1, 0.0, -1.6)))


def losses(shares: np.ndarray, truth: tuple) -> np.ndarray:
    """Losses by c + k exp(t r) as it stands in the paper, (n, texts)."""
    return np.stack([c + k * np.exp(shares @ np.array(t)) for c, k, t in truth], axis=1)


def table(shares: np.ndarray, found: np.ndarray, **more: np.ndarray) -> MixtureRuns:
    """Runs at these shares, with these losses."""
    columns = {f"share/{'abc'[place]}": column for place, column in enumerate(shares.T)}
    columns |= {f"loss/{'xyz'[place]}": column for place, column in enumerate(found.T)}
    return MixtureRuns.of(columns | more)


def noisy(rng: np.random.Generator, noise: float, seeds: int = 1) -> MixtureRuns:
    """Runs of the law of two corpora with noise of their own, by so many seeds."""
    shares = np.tile(TWO, (seeds, 1))
    found = losses(shares, TRUTH2) * np.exp(noise * rng.standard_normal((len(shares), 2)))
    return table(shares, found, seed=np.repeat(np.arange(seeds), len(TWO)))


@pytest.mark.parametrize(("shares", "truth"), [(TWO, TRUTH2), (THREE, TRUTH3)])
def test_noise_free_runs_give_their_law_back(shares, truth):
    law = fit_mixture(table(shares, losses(shares, truth)))
    for (c, k, t), found in zip(truth, law.coefficients().values(), strict=True):
        mean = np.mean(t)
        assert found["c"] == pytest.approx((c,) * 3, rel=1e-5)
        assert found["k"][0] == pytest.approx(k * np.exp(mean), rel=1e-5)  # k and the mean of t are one coefficient
        for name, slope in zip("abc", t, strict=False):
            assert found[f"t/{name}"][0] == pytest.approx(slope - mean, abs=1e-5)
            assert found[f"alone/{name}"][0] == pytest.approx(c + k * np.exp(slope), rel=1e-5)
    assert np.nanmax(np.abs(law.held_out)) < 1e-5
    target = law.target()
    best, expected = law.best(target), scipys_best(truth, shares)
    np.testing.assert_allclose(best.point, expected, atol=2e-4)
    assert best.forecast.loss[0] == pytest.approx(float(losses(expected[None], truth).mean()), rel=1e-6)


def scipys_best(truth: tuple, shares: np.ndarray) -> np.ndarray:
    """The least mean loss by the law as it stands, within the shares of the runs, by another method."""
    one = optimize.LinearConstraint(np.ones(shares.shape[1]), 1, 1)
    box = optimize.Bounds(shares.min(axis=0), shares.max(axis=0))
    start = shares.mean(axis=0)

    def loss(point: np.ndarray) -> float:
        return float(losses(point[None], truth).mean())

    return optimize.minimize(loss, start, method="trust-constr", bounds=box, constraints=[one], tol=1e-11).x


def test_the_fit_is_scipys():
    law = fit_mixture(noisy(np.random.default_rng(1), 0.01, seeds=2))
    for text, point in enumerate(law.points):
        seen = np.log(law.runs.losses[:, text] / law.units[text])

        def cost(z: np.ndarray, seen: np.ndarray = seen) -> float:
            return float(huber(np.logaddexp(z[0], law.runs.shares @ z[1:]) - seen, DELTA).sum())

        found = optimize.minimize(
            cost, point + 0.02, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000}
        )
        assert cost(point) <= found.fun * (1 + 1e-6)
        np.testing.assert_allclose(law.residuals[text], seen - np.logaddexp(point[0], law.runs.shares @ point[1:]))


def test_over_scale_floor_and_slopes_fall_as_powers():
    shares, tokens = np.repeat(THREE, 3, axis=0), np.tile([1e6, 2e6, 4e6], len(THREE))
    powers = np.array([0.1, 0.2, 0.3])

    def truth(shares: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        slopes = np.array([-1.5, 0.3, 0.1]) - powers * np.log(tokens[:, None] / 4e6)
        return (1.2 * (tokens / 4e6) ** -0.05 + 0.9 * np.exp((shares * slopes).sum(axis=1)))[:, None]

    law = fit_mixture(table(shares, truth(shares, tokens), tokens=tokens, flops=6 * tokens))
    assert list(law.scales) == ["tokens"]  # compute moves with them alone
    found = law.coefficients()["x"]
    names = ("power/tokens", *(f"power/tokens/{name}" for name in "abc"))
    assert [found[name][0] for name in names] == pytest.approx([0.05, *powers], abs=1e-4)
    ahead = np.array([0.2, 0.3, 0.5])
    expected = float(truth(ahead[None], np.array([16e6]))[0, 0])
    assert law.forecast(ahead, law.target(), {"tokens": 16e6}).loss[0] == pytest.approx(expected, rel=1e-5)
    worth, low, high = law.worth(ahead, np.array([0.6, 0.2, 0.2]), law.target())
    assert float(truth(ahead[None], np.array([4e6 * worth]))[0, 0]) == pytest.approx(
        float(truth(np.array([[0.6, 0.2, 0.2]]), np.array([4e6]))[0, 0]), rel=1e-5
    )
    assert low == pytest.approx(worth, rel=1e-6) and high == pytest.approx(worth, rel=1e-6)
    measured = law.worth(ahead, ahead, law.target(), ratio=1.0)
    assert measured[0] == pytest.approx(1.0)


def test_derivatives_are_those_of_differences():
    law, rng = Mixing(3, 1), np.random.default_rng(0)
    inputs = (*THREE.T, rng.standard_normal(len(THREE)))
    z, c = rng.uniform(-1, 1, law.size), rng.standard_normal(len(THREE))
    _, slope, curvature = law.expand(z, *inputs)
    np.testing.assert_allclose(slope.T, optimize.approx_fprime(z, lambda z: law.value(z, *inputs), 1e-7), atol=1e-6)

    def gradient(z: np.ndarray) -> np.ndarray:
        return law.expand(z, *inputs)[1] @ c

    np.testing.assert_allclose(curvature(c), optimize.approx_fprime(z, gradient, 1e-7), atol=1e-5)


def test_intervals_hold_a_new_run_about_as_often_as_they_say():
    rng, inside = np.random.default_rng(7), []
    for _ in range(12):
        law = fit_mixture(noisy(rng, 0.005, seeds=2), draws=100)
        for _ in range(8):
            at = 0.1 + 0.8 * rng.dirichlet([1, 1])
            one = law.forecast(at, law.target())
            new = losses(at[None], TRUTH2) * np.exp(0.005 * rng.standard_normal((1, 2)))
            inside.append(one.loss[1] <= new.mean() <= one.loss[2])
    assert 0.8 <= np.mean(inside) <= 0.99


def test_a_run_that_went_wrong_bends_it_less_than_least_squares():
    clean = losses(np.tile(TWO, (3, 1)), TRUTH2)
    spoilt = clean.copy()
    spoilt[4] *= 1.2
    law = fit_mixture(table(np.tile(TWO, (3, 1)), spoilt, seed=np.repeat([0, 1, 2], 5)))
    np.testing.assert_allclose(law.losses(TWO).T, clean[:5], rtol=0.01)


def test_a_corpus_is_held_at_the_most_that_there_is_of_it():
    law = fit_mixture(table(TWO, losses(TWO, TRUTH2)))
    best = law.best(law.target(), most=[0.3, 1.0])
    assert best.shares == pytest.approx({"a": 0.3, "b": 0.7}) and best.held == ("a",)
    one = law.best(law.target({"x": 1.0}))
    assert one.shares["a"] == pytest.approx(0.9, abs=1e-6)
    assert any("edge of what the runs had" in doubt for doubt in law.doubts(one))
    with pytest.raises(UserError, match="may make up 50% of a run together"):
        law.best(law.target(), most=[0.3, 0.2])


def test_what_counts_is_said_by_name():
    law = fit_mixture(table(TWO, losses(TWO, TRUTH2)))
    np.testing.assert_allclose(law.target({"y": 3.0, "x": 1.0}), [0.25, 0.75])
    with pytest.raises(UserError, match="no held-out text is called 'code'"):
        law.target({"code": 1.0})
    with pytest.raises(UserError, match="count by x=-1: none may be negative"):
        law.target({"x": -1.0})
    with pytest.raises(UserError, match="count by x=0"):
        law.target({"x": 0.0})


def test_a_table_comes_back_from_its_file(tmp_path):
    runs = table(TWO * 7, losses(TWO, TRUTH2), tokens=np.full(5, 1e6), seed=np.arange(5))
    np.testing.assert_allclose(runs.shares, TWO)
    runs.write(tmp_path / "obs.csv")
    again = read(tmp_path / "obs.csv")
    assert again.corpora == ("a", "b") and again.texts == ("x", "y")
    np.testing.assert_array_equal(again.losses, runs.losses)
    assert again.mixture.tolist() == [0, 1, 2, 3, 4]
    assert table(TWO[[3, 3, 1]], losses(TWO[:3], TRUTH2)).mixture.tolist() == [0, 0, 1]


GOOD = {"share/a": TWO[:, 0], "share/b": TWO[:, 1], "loss/x": np.ones(5)}


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"share/a": [1.0], "share/b": [0.0]}, "no column 'loss/NAME'"),
        ({"loss/x": [1.0]}, "no column 'share/NAME'"),
        ({"share/a": [1.0], "loss/x": [1.0]}, "there is one corpus, 'a': a mixture is of two or more"),
        (GOOD | {"share/a": [0.1, -0.3, 0.5, 0.7, 0.9]}, "row 2, column 'share/a': -0.3 is not a share"),
        (GOOD | {"share/a": np.zeros(5), "share/b": [1, 0, 1, 1, 1]}, "row 2: its shares add up to 0"),
        (GOOD | {"loss/x": [1, 2, 0, 1, 1]}, "row 3, column 'loss/x': 0 is not a number above 0"),
        (GOOD | {"loss/x": [1, 2, np.nan, 1, 1]}, "row 3, column 'loss/x': nan is not a number above 0"),
    ],
)
def test_tables_that_hold_no_mixtures_are_refused(columns, why):
    with pytest.raises(UserError, match=why):
        MixtureRuns.of({name: np.array(column, dtype=float) for name, column in columns.items()})


def test_runs_that_cannot_tell_are_refused():
    with pytest.raises(UserError, match="the runs are of 2 mixtures: the law of 2 corpora has 3 coefficients"):
        fit_mixture(table(TWO[:2], losses(TWO[:2], TRUTH2)))
    together = np.array([[0.5 - s, 0.5 - s, 2 * s] for s in (0.05, 0.1, 0.2, 0.3, 0.4)])
    with pytest.raises(UserError, match="do not move apart"):
        fit_mixture(table(together, losses(together, TRUTH3)))
