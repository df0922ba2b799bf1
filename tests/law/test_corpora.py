from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from nachim.law import LAWS, Observations, concat, read
from nachim.law.corpora import EXPONENTS, Joint, corpora
from nachim.law.fit import sample_of
from nachim.spec.error import UserError

LAW = LAWS["chinchilla"]
GOOD = {"E": 1.7, "A": 400.0, "B": 420.0, "alpha": 0.34, "beta": 0.30}
POOR = GOOD | {"E": 1.9, "B": 600.0}
"""A corpus that differs in E and B: the same exponents, another optimum."""
OTHER = GOOD | {"E": 1.9, "B": 200.0, "beta": 0.26}


def table(truths: dict[str, dict[str, float]], rng: np.random.Generator, noise: float) -> Observations:
    """30 runs a corpus, of 5 scales by 6 token counts."""
    x = np.repeat([3e6, 1e7, 3e7, 1e8, 3e8], 6)
    tokens = np.tile(np.geomspace(5, 160, 6), 5) * x
    parts = []
    for name, theta in truths.items():
        loss = LAW.predict(theta, x, tokens) * np.exp(noise * rng.standard_normal(30))
        parts.append(Observations(tokens, loss, params=x, group=np.array([name] * 30)))
    return concat(parts)


@pytest.mark.parametrize("name", ["chinchilla", "coupled"])
@pytest.mark.parametrize("shared", [(), EXPONENTS, (*EXPONENTS, "E")])
def test_a_joint_law_has_the_slopes_of_finite_differences(name, shared):
    rng = np.random.default_rng(0)
    obs = table({"a": GOOD, "b": POOR, "c": OTHER}, rng, 0.01)
    sample = sample_of(obs, "params")
    label = np.repeat([0, 1, 2], 30)
    joint = Joint(LAWS[name], label, shared)
    exponents = len(set(LAWS[name].coefficient_names) & set(shared))
    assert joint.size == 3 * LAWS[name].size - 2 * exponents
    z = rng.uniform(0.2, 0.5, (2, joint.size))
    value, slope, curvature = joint.expand(z, *sample.inputs)
    assert value == pytest.approx(joint.value(z, *sample.inputs))
    c = rng.standard_normal(value.shape)
    bend = curvature(c)
    for place in range(joint.size):
        turn = 1e-6 * (np.arange(joint.size) == place)
        above, below = joint.expand(z + turn, *sample.inputs), joint.expand(z - turn, *sample.inputs)
        assert slope[:, place] == pytest.approx((above[0] - below[0]) / 2e-6, abs=1e-7)
        bent = np.einsum("rpn,rn->rp", above[1] - below[1], c) / 2e-6
        assert bend[:, place] == pytest.approx(bent, abs=1e-5)


def test_corpora_of_one_law_are_told_from_corpora_of_two():
    rng = np.random.default_rng(0)
    same = corpora(table({"good": GOOD, "poor": POOR}, rng, 0.003), law="chinchilla", draws=99)
    other = corpora(table({"good": GOOD, "other": OTHER}, rng, 0.003), law="chinchilla", draws=99)
    assert same.exponents.p > other.exponents.p == 0.01
    assert same.floor.p == 0.01
    assert (same.exponents.freedom, same.floor.freedom) == (2, 1)
    low, high = same.shifts("exponents", 1e21)[1].ratio_interval90
    truth = float(LAW.allocation(POOR, 1e21, "params")[0] / LAW.allocation(GOOD, 1e21, "params")[0])
    assert low < truth < high
    wide = same.shifts("own", 1e21)[1].ratio_interval90
    assert np.ptp(np.log(wide)) > np.ptp(np.log((low, high)))


def test_noise_free_corpora_give_back_their_laws():
    found = corpora(table({"good": GOOD, "other": OTHER}, np.random.default_rng(0), 0.0), law="chinchilla", draws=9)
    assert found.coefficients("own")[1] == pytest.approx(OTHER, rel=1e-6)
    exponents = found.model_exponents("own", 1e20)
    assert [one for one, _ in exponents] == pytest.approx([0.30 / 0.64, 0.26 / 0.60], rel=1e-6)
    best = found.shifts("own", 1e20)
    assert best[0].ratio == 1
    assert best[1].x == pytest.approx(float(LAW.allocation(OTHER, 1e20, "params")[0]), rel=1e-5)
    assert best[1].tokens == pytest.approx(1e20 / 6 / best[1].x)
    assert best[1].tokens_per_x == pytest.approx(best[1].tokens / best[1].x)


def test_p_values_are_uniform_where_corpora_share_their_exponents():
    """24 tables of equal exponents but other E and B, 39 refits each: p does not stray from uniform.

    bench/corpora.py asks more, of other noises.
    """
    found = []
    for seed in range(24):
        obs = table({"good": GOOD, "poor": POOR}, np.random.default_rng(seed), 0.005)
        found.append(corpora(obs, law="chinchilla", seed=seed, draws=39).exponents)
    assert kstest([one.p for one in found], "uniform").pvalue > 0.01
    assert np.mean([one.p < 0.1 for one in found]) <= 0.3


def test_the_unit_of_loss_moves_no_exponent():
    """Bits a byte instead of nats a token: E, A and B scale, the test does not see it."""
    obs = table({"good": GOOD, "poor": POOR}, np.random.default_rng(0), 0.003)
    bits = Observations(obs.tokens, np.where(obs.group == "poor", 0.33, 1.0) * obs.loss, obs.params, group=obs.group)
    one, other = (corpora(each, law="chinchilla", draws=19) for each in (obs, bits))
    assert other.exponents.statistic == pytest.approx(one.exponents.statistic, rel=1e-4)
    assert other.shifts("own", 1e21)[1].x == pytest.approx(one.shifts("own", 1e21)[1].x, rel=1e-4)


def test_tables_that_compare_nothing_are_refused():
    obs = table({"good": GOOD, "poor": POOR}, np.random.default_rng(0), 0.003)
    with pytest.raises(UserError, match="no column 'group'"):
        corpora(Observations(obs.tokens, obs.loss, obs.params))
    with pytest.raises(UserError, match="holds one corpus, 'good'"):
        corpora(obs.subset(obs.group == "good"))
    blank = np.where(np.arange(60) == 6, " ", obs.group)
    with pytest.raises(UserError, match="row 7 has nothing in column 'group'"):
        corpora(Observations(obs.tokens, obs.loss, obs.params, group=blank))
    with pytest.raises(UserError, match="holds 60 corpora"):
        corpora(Observations(obs.tokens, obs.loss, obs.params, group=np.arange(60).astype(str)))
    with pytest.raises(UserError, match="poor: 4 runs cannot determine"):
        corpora(obs.subset(np.arange(34)), law="chinchilla")
    with pytest.raises(UserError, match="farseer law has no exponents"):
        corpora(obs, law="farseer")


def test_published_corpora(shared_data):
    """arXiv 2403.08540's three corpora: run by run the same shapes, so their laws may be compared."""
    runs = read(shared_data / "scaling" / "gadre" / "observations.csv")
    found = corpora(runs, law="chinchilla", draws=39)
    assert len(found.names) == 3
    assert 0 < found.exponents.p <= 1
    assert all(low < one.x < high for one in found.shifts("own", 1e21) for low, high in [one.x_interval90])
