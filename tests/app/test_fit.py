from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tyro

from nachim.app.fit import fit
from nachim.law import LAWS
from nachim.spec.error import UserError
from tests.law.ladders import TRUTH, ladder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A ladder, cut at its dearest tenth: what is fitted, and what is held out."""
    obs = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.005)
    dear = obs.flops > np.quantile(obs.flops, 0.9)
    obs.subset(~dear).write(tmp_path / "cheap.csv")
    obs.subset(dear).write(tmp_path / "dear.parquet")
    return tmp_path / "cheap.csv", tmp_path / "dear.parquet"


def test_json_is_one_object_with_what_was_asked(runs, capsys):
    assert fit(runs[0], holdout=runs[1], law="chinchilla", json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["law"] == "chinchilla"
    assert said["scale"] == "params"
    assert said["coefficients"].keys() == said["interval90"].keys() == TRUTH["chinchilla"].keys()
    assert all(low <= high for low, high in said["interval90"].values())
    assert said["exponents"]["model"] + said["exponents"]["data"] == pytest.approx(1)
    assert said["train"]["n"] == 27
    assert 0 < said["train"]["mape"] < 1
    assert said["holdout"].keys() == {"n", "mape", "coverage90", "median_width"}
    assert said["holdout"]["n"] == 3
    assert said["holdout"]["mape"] < 3
    assert said["objective"] > 0
    assert 0 < said["seconds"] < 5
    assert said["regime"] is None


def test_without_holdout_it_is_null(runs, capsys):
    fit(runs[0], json=True)
    assert json.loads(capsys.readouterr().out)["holdout"] is None


def test_the_table_says_what_the_numbers_are(runs, capsys):
    fit(runs[0], holdout=runs[1], law="coupled")
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "coupled law",
        "90 % interval",
        "entropy",
        "held out: 3 runs",
        "rollouts",
        "exponent by the fitted surface",
    ):
        assert words in said


def test_a_change_of_regime_is_reported(tmp_path, capsys):
    ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.01, fall=0.2).write(tmp_path / "runs.csv")
    fit(tmp_path / "runs.csv", json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["regime"]["percent"] < -10
    assert any("change of regime" in warning for warning in said["warnings"])


def test_wrong_input_is_one_sentence(runs, tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        fit(tmp_path / "none.csv")
    with pytest.raises(UserError, match="no column 'flops_per_token'"):
        fit(runs[0], scale="flops_per_token")
    with pytest.raises(UserError, match="cannot determine"):
        fit(runs[1])
    (tmp_path / "text.csv").write_text("tokens,loss,params\n1,x,3\n")
    with pytest.raises(UserError, match="row 1, column 'loss'"):
        fit(runs[0], holdout=tmp_path / "text.csv")


def test_the_command_line_and_its_help(runs, capsys):
    assert tyro.cli(fit, args=[str(runs[0]), "--law", "chinchilla", "--seed", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["law"] == "chinchilla"
    with pytest.raises(SystemExit):
        tyro.cli(fit, args=["--help"])
    said = capsys.readouterr().out
    assert "nachim fit ladder.csv" in said
    assert "--holdout" in said
