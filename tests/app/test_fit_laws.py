"""`nachim fit --law NAME` from a CSV, for every law of the library."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nachim.app.fit import fit
from nachim.law import Observations
from nachim.spec.error import UserError
from tests.law.library import LAWS, TRUTH, runs

KEYS = ("law", "formula", "scale", "coefficients", "interval90", "objective", "exponents", "exponents_interval90")
OVER_BOTH = ("kaplan", "overtraining", "farseer")


@pytest.mark.parametrize("name", LAWS)
def test_a_law_is_fitted_from_a_table(name, tmp_path, capsys):
    obs = runs(name, 0.002)
    obs.subset(np.arange(90)).write(tmp_path / "runs.csv")
    obs.subset(np.arange(90, 100)).write(tmp_path / "more.csv")
    assert fit(tmp_path / "runs.csv", holdout=tmp_path / "more.csv", law=name, scale="params", json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["law"] == name
    assert set(KEYS) < set(said)
    assert set(said["coefficients"]) == set(TRUTH[name]) == set(said["interval90"])
    assert said["train"]["n"] == 90
    assert said["train"]["mape"] < 0.3
    assert said["holdout"]["n"] == 10
    assert said["holdout"]["mape"] < 0.6
    if name in OVER_BOTH:
        assert said["exponents"]["model"] + said["exponents"]["data"] == pytest.approx(1)
    else:
        assert said["exponents"] is None
        assert said["exponents_interval90"] is None


@pytest.mark.parametrize("name", ["farseer", "routing"])
def test_what_a_person_sees(name, tmp_path, capsys):
    runs(name, 0.002).write(tmp_path / "runs.csv")
    assert fit(tmp_path / "runs.csv", law=name, scale="params") == 0
    out = capsys.readouterr().out
    assert f"{name} law" in out
    assert "90 % interval" in out


def test_a_column_that_a_law_lacks_is_named(tmp_path):
    obs = runs("granularity")
    Observations(obs.tokens, obs.loss, params=obs.params).write(tmp_path / "runs.csv")
    with pytest.raises(UserError, match="needs a column 'granularity'"):
        fit(tmp_path / "runs.csv", law="granularity")


def test_a_name_that_is_no_law_is_refused_with_the_nearest(tmp_path):
    runs("kaplan").write(tmp_path / "runs.csv")
    with pytest.raises(UserError, match="did you mean 'kaplan'"):
        fit(tmp_path / "runs.csv", law="kaplann")
