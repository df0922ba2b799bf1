"""`nachim backtest DIR`: its table, its JSON contract and its page."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nachim.app.backtest import backtest_
from nachim.law import LAWS
from nachim.law.laws import ALL
from nachim.spec.error import UserError
from tests.law.ladders import ladder


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(("one", "two")):
        (tmp_path / "tables" / name).mkdir(parents=True)
        obs = ladder(LAWS["coupled"], np.random.default_rng(seed), 0.003)
        obs.write(tmp_path / "tables" / name / "observations.csv")
    return tmp_path / "tables"


def test_the_json_has_every_set_with_its_numbers(folder, capsys):
    assert backtest_(folder, law=("auto", "chinchilla"), json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["sets"]) == {"one", "two"}
    for one in said["sets"].values():
        assert one["law"] in ALL
        assert one["asked"] == "auto"
        assert all(np.isfinite(one[name]) for name in ("mape", "coverage90", "median_width", "seconds"))
        assert len(one["trials"]) == 6
    assert (said["pooled"][0]["law"], said["pooled"][0]["cutoff"]) == ("auto", 1.0)
    assert said["skipped"] == []


def test_a_person_sees_tables_a_sentence_and_a_page(folder, tmp_path, capsys):
    (folder / "bad").mkdir()
    (folder / "bad" / "observations.csv").write_text("a\n1\n")
    (folder / "few").mkdir()
    ladder(LAWS["coupled"], np.random.default_rng(0), 0.003).subset(np.arange(4)).write(folder / "few/observations.csv")
    page = tmp_path / "backtest.html"
    assert backtest_(folder, law=("auto", "coupled"), out=page) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Over 2 sets the choice among laws forecast the dearest runs" in said
    assert "skipped:" in said
    assert "no forecast of few:" in said
    html = page.read_text(encoding="utf-8")
    assert html.count("plotly-graph-div") == 2
    assert "http-equiv" in html
    assert "Error against reach" in html


def test_what_cannot_be_tried_is_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match="did you mean 'chinchilla'"):
        backtest_(folder, law=("chinchila",))
    with pytest.raises(UserError, match="is not a folder"):
        backtest_(tmp_path / "none")
