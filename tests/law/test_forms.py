from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from nachim.law import LAWS, Law, law_named
from nachim.law.fit import sample_of
from nachim.law.forms import Units
from nachim.law.laws import ALL
from nachim.law.observe import of
from nachim.spec.error import UserError
from tests.law.ladders import TRUTH

POINT = np.array([0.55, -1.1, -0.8, 0.6, 0.4, -0.5])
LOG_X, LOG_TOKENS = np.random.default_rng(0).normal(size=(2, 7))


def test_chinchilla_predicts_its_published_loss():
    """arXiv 2203.15556: the fitted constants give Chinchilla (70B, 1.4T tokens) about 1.93 nats."""
    loss = LAWS["chinchilla"].predict(TRUTH["chinchilla"], 70e9, 1.4e12)
    assert loss == pytest.approx(1.69 + 406.4 * 70e9**-0.34 + 410.7 * 1.4e12**-0.28, rel=1e-12)
    assert loss == pytest.approx(1.93, abs=0.01)


@pytest.mark.parametrize("name", LAWS)
def test_the_normalised_law_is_the_law(name):
    law, units = LAWS[name], Units(x=3e7, tokens=2e9, loss=2.7)
    theta = law.coefficients(POINT[: law.size], units)
    plain = law.predict(theta, units.x * np.exp(LOG_X), units.tokens * np.exp(LOG_TOKENS))
    assert units.loss * np.exp(law.value(POINT[: law.size], LOG_X, LOG_TOKENS)) == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_slope_and_curvature_agree_with_finite_differences(name):
    law, step = LAWS[name], 1e-5
    z = POINT[: law.size]
    value, slope, curvature = law.expand(z, LOG_X, LOG_TOKENS)
    assert value == pytest.approx(law.value(z, LOG_X, LOG_TOKENS), rel=1e-13)
    c = np.random.default_rng(1).normal(size=len(LOG_X))
    bend = curvature(c)
    for i, push in enumerate(step * np.eye(law.size)):
        up, down = law.expand(z + push, LOG_X, LOG_TOKENS), law.expand(z - push, LOG_X, LOG_TOKENS)
        assert slope[i] == pytest.approx((up[0] - down[0]) / (2 * step), rel=1e-6, abs=1e-9)
        assert bend[i] == pytest.approx((up[1] - down[1]) @ c / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize(("scale", "per_unit"), [("params", 6), ("flops_per_token", 1)])
def test_the_closed_form_allocation_is_the_minimum(name, scale, per_unit):
    law, theta, flops = LAWS[name], TRUTH[name], 1e19
    x, tokens = law.allocation(theta, flops, scale)
    assert per_unit * x * tokens == pytest.approx(flops, rel=1e-12)

    def loss(log_x: float) -> float:
        return float(law.predict(theta, np.exp(log_x), flops / per_unit / np.exp(log_x)))

    found = minimize_scalar(loss, bracket=(np.log(x) - 2, np.log(x) + 1.7), tol=1e-12)
    assert np.exp(found.x) == pytest.approx(float(x), rel=1e-5)
    model, data = law.exponents(theta)
    wider = law.allocation(theta, 100 * flops, scale)
    assert np.log(wider[0] / x) / np.log(100) == pytest.approx(model, rel=1e-12)
    assert model + data == pytest.approx(1)


def test_the_numerical_allocation_is_the_closed_form():
    law, theta = LAWS["coupled"], TRUTH["coupled"]
    several = {name: value * np.array([1, 1.1]) for name, value in theta.items()}
    for flops in (1e19, np.array([1e18, 1e21])):
        for found, exact in zip(
            Law.allocation(law, several, flops, "params"), law.allocation(several, flops, "params"), strict=True
        ):
            assert found == pytest.approx(exact, rel=1e-6)
    assert Law.exponents(law, theta)[0] == pytest.approx(law.exponents(theta)[0], abs=1e-6)


def test_the_outer_power_does_not_move_the_optimum():
    theta = TRUTH["coupled"]
    inner = {name: value for name, value in theta.items() if name != "k"}
    coupled = LAWS["coupled"].allocation(theta, 1e18, "params")
    assert np.allclose(coupled, LAWS["chinchilla"].allocation(inner, 1e18, "params"))


@pytest.mark.parametrize("name", ALL)
def test_slope_and_curvature_of_every_law_agree_with_finite_differences(name):
    """At a start of the law for made-up runs: a law that is added to the library is checked here too."""
    law, rng = ALL[name], np.random.default_rng(0)
    given = {each: 10 ** rng.uniform(0.3, 2.5, 40) for each in law.inputs}
    given |= {each: rng.uniform(0.02, 0.9, 40) for each in law.inputs if each.endswith("share")}
    given |= {each: rng.uniform(2, 16, 40) for each in law.inputs if each.endswith("bits")}
    given |= {"x": 1e6 * given["x"]} if "x" in given else {}
    given |= {"tokens": 1e8 * given["tokens"]} if "tokens" in given else {}
    given |= {"unique_tokens": given["tokens"] / rng.uniform(1, 20, 40)} if "unique_tokens" in given else {}
    own = {"params": given.pop("x", np.ones(40)), "tokens": given.pop("tokens", np.ones(40))}
    obs = of(own | given | {"loss": 3 * np.exp(0.2 * rng.standard_normal(40))})
    sample = sample_of(obs, "params", law)
    z = np.clip(law.starts(sample, sample.weight, 2)[0], law.low + 1e-3, law.high - 1e-3)
    value, slope, curvature = law.expand(z, *sample.inputs)
    assert np.isfinite(value).all() and np.isfinite(slope).all()
    assert value == pytest.approx(law.value(z, *sample.inputs), rel=1e-12, abs=1e-14)
    c, step = rng.standard_normal(40), 1e-6
    for i, push in enumerate(step * np.eye(law.size)):
        up, down = law.expand(z + push, *sample.inputs), law.expand(z - push, *sample.inputs)
        near = 1e-6 * np.abs(slope[i]).max() + 1e-8
        assert slope[i] == pytest.approx((up[0] - down[0]) / (2 * step), rel=1e-5, abs=near)
        if curvature is not None:
            bend = (up[1] - down[1]) @ c / (2 * step)
            assert curvature(c)[i] == pytest.approx(bend, rel=1e-4, abs=1e-5 * np.abs(bend).max() + 1e-7)


def test_a_law_says_which_input_it_lacks_or_does_not_read():
    with pytest.raises(UserError, match="the chinchilla law also needs tokens"):
        LAWS["chinchilla"].predict(TRUTH["chinchilla"], 1e9)
    with pytest.raises(UserError, match="does not read 'token'; did you mean 'tokens'"):
        LAWS["chinchilla"].predict(TRUTH["chinchilla"], 1e9, tokens=1e9, token=1e9)


def test_an_unknown_law_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'chinchilla'"):
        law_named("chinchila")
