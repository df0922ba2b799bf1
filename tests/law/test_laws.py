"""What holds for every law of the library, each against its formula written out in `tests.law.library`."""

from __future__ import annotations

import numpy as np
import pytest

from nachim.law import Observations, fit
from nachim.law.fit import sample_of
from nachim.law.laws import ALL, law_named
from nachim.spec.error import UserError
from tests.law.library import LAWS, TRUTH, WRITTEN, columns, runs


@pytest.mark.parametrize("name", LAWS)
def test_a_law_is_its_published_formula(name):
    given = columns(name)
    by_hand = [WRITTEN[name](TRUTH[name], *row) for row in np.transpose(list(given.values()))]
    assert LAWS[name].predict(TRUTH[name], **given) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_noise_free_runs_give_back_the_truth(name):
    """The goal is 1e-7 %; every coefficient too, for these runs identify them all."""
    found = fit(runs(name), LAWS[name], "params")
    assert np.abs(np.expm1(found.residuals)).max() < 1e-12
    assert found.coefficients == pytest.approx(TRUTH[name], rel=1e-9)
    assert found.at_bound == ()


@pytest.mark.parametrize("name", LAWS)
def test_the_normalised_law_is_the_law_and_its_slope_is_its_slope(name):
    law, rng, step = LAWS[name], np.random.default_rng(2), 1e-6
    sample = sample_of(runs(name), "params", law)
    for z in law.starts(sample, sample.weight, 3):
        z = np.clip(z + 0.01 * rng.standard_normal(law.size), law.low + 1e-3, law.high - 1e-3)
        value, slope, curvature = law.expand(z, *sample.inputs)
        plain = law.predict(law.coefficients(z, sample.units), **columns(name))
        np.testing.assert_allclose(sample.units.loss * np.exp(value), plain, rtol=1e-9)
        np.testing.assert_allclose(value, law.value(z, *sample.inputs), rtol=1e-12, atol=1e-14)
        c = rng.standard_normal(len(value))
        for i, push in enumerate(step * np.eye(law.size)):
            up, down = law.expand(z + push, *sample.inputs), law.expand(z - push, *sample.inputs)
            np.testing.assert_allclose(slope[i], (up[0] - down[0]) / (2 * step), rtol=1e-5, atol=1e-7)
            if curvature is not None:
                np.testing.assert_allclose(curvature(c)[i], (up[1] - down[1]) @ c / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_a_batch_of_points_is_the_points(name):
    law = LAWS[name]
    sample = sample_of(runs(name), "params", law)
    z = law.starts(sample, sample.weight, 4)
    value, slope, curvature = law.expand(z, *sample.inputs)
    for i, each in enumerate(z):
        alone = law.expand(each, *sample.inputs)
        np.testing.assert_allclose(value[i], alone[0], atol=1e-12)
        np.testing.assert_allclose(slope[i], alone[1], atol=1e-12)
        if curvature is not None:
            np.testing.assert_allclose(curvature(value)[i], alone[2](value[i]), atol=1e-12)


@pytest.mark.parametrize("name", [name for name in LAWS if set(LAWS[name].inputs) - {"x", "tokens", "flops"}])
def test_a_missing_column_is_named(name):
    obs = runs(name)
    lacking = LAWS[name].inputs[-1] if LAWS[name].inputs[-1] != "tokens" else "vocab_params"
    rest = {each: column for each, column in obs.extra.items() if each != lacking}
    with pytest.raises(UserError, match=lacking):
        fit(Observations(tokens=obs.tokens, loss=obs.loss, params=obs.params, extra=rest), LAWS[name], "params")


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("routing", "experts"),
        ("granularity", "granularity"),
        ("sparsity", "active_share"),
        ("precision", "cache_bits"),
        ("precision-weights", "weight_bits"),
        ("vocabulary", "vocab_params"),
    ],
)
def test_one_value_of_what_a_law_is_about_is_refused(name, constant):
    obs = runs(name)
    extra = dict(obs.extra) | {constant: np.full(len(obs), 4.0)}
    with pytest.raises(UserError, match=f"1 distinct values of '{constant}': at least 3"):
        fit(Observations(tokens=obs.tokens, loss=obs.loss, params=obs.params, extra=extra), LAWS[name], "params")


@pytest.mark.parametrize("name", LAWS)
def test_too_few_runs_say_how_many_would_do(name):
    with pytest.raises(UserError, match=f"at least {LAWS[name].size + 1} are needed"):
        fit(runs(name).subset(np.arange(LAWS[name].size)), LAWS[name], "params")


def test_every_law_says_where_it_is_from_and_is_found_by_name():
    for name, law in ALL.items():
        assert law_named(name) is law
        assert law.source.startswith("arXiv ") and law.formula
        assert law.size == len(law.low) == len(law.high) == len(set(law.coefficient_names))
    with pytest.raises(UserError, match="did you mean 'farseer'"):
        law_named("farser")
