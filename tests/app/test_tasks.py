from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tyro

from nachim.app.tasks import tasks
from nachim.law import Observations
from nachim.spec.error import UserError
from tests.law.answers import answered, loss_at, right_at

PARAMS, TOKENS = 7e9, 7e11
HEADS = ("task", "params", "tokens", "task_loss", "accuracy", "chance", "items")


def write(path: Path, runs: Mapping[str, Observations]) -> Path:
    columns = ("params", "tokens", "loss", "accuracy", "chance", "items")
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADS)
        for name, obs in runs.items():
            writer.writerows((name, *row) for row in zip(*(obs.columns()[key] for key in columns), strict=True))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    runs = {"reading": answered(rng), "hard": answered(rng, middle=-1.0, items=500)}
    return write(tmp_path_factory.mktemp("tasks") / "small.csv", runs)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    loss = loss_at(np.array([PARAMS]), np.array([TOKENS]))
    rows = [f"{name},{PARAMS},{TOKENS},{float(right_at(loss, 0.25)[0])}" for name in ("reading", "hard")]
    (tmp_path / "large.csv").write_text("\n".join(["task,params,tokens,accuracy", *rows]) + "\n")
    return tmp_path / "large.csv"


def test_json_is_one_object_with_forecasts_or_reasons(small, large, capsys):
    assert tasks(small, holdout=large, json=True) == 0
    said = json.loads(capsys.readouterr().out)
    ready, hard = said["tasks"]["reading"], said["tasks"]["hard"]
    (one,) = ready["forecasts"]
    assert ready["accepted"]
    assert one["low"] < one["actual"] < one["high"]
    assert one["low"] < one["accuracy"] < one["high"]
    assert sum(ready["weights"].values()) == pytest.approx(1)
    assert not hard["accepted"]
    assert "at chance" in hard["reason"]
    assert hard["forecasts"] == []
    assert said["holdout"]["n"] == 1
    assert said["holdout"]["mean_points"] == pytest.approx(100 * abs(one["accuracy"] - one["actual"]))


def test_a_longer_answer_leaps_where_the_ability_does_not(tmp_path, capsys):
    loss = 0.05 + 1.9 * np.geomspace(1, 1e4, 15) ** -0.3
    rows = [f"{10.0**n},{each},0.3" for n, each in zip(np.linspace(18, 22, 15), loss, strict=True)]
    (tmp_path / "runs.csv").write_text("\n".join(["flops,task_loss,accuracy", *rows]) + "\n")
    tasks(tmp_path / "runs.csv", unit="nats", json=True)
    nats = json.loads(capsys.readouterr().out)["tasks"]["task"]["leap"]
    assert nats["exact"] > 2 * nats["linear"] > 0
    assert nats["linear"] < 2 * 14
    tasks(tmp_path / "runs.csv", json=True)
    assert json.loads(capsys.readouterr().out)["tasks"]["task"]["leap"]["exact"] < nats["exact"]


def test_the_table_and_the_page(small, large, tmp_path, capsys):
    tasks(small, holdout=large, out=tmp_path / "page.html")
    said = " ".join(capsys.readouterr().out.split())
    for words in ("hard: no forecast, accuracy is at chance", "held out: 1 forecasts", "came out"):
        assert words in said
    page = (tmp_path / "page.html").read_text()
    for words in ("1 of 2 tasks can be forecast", "doing", "chance of one right byte", "Plotly.newPlot"):
        assert words in page


def test_runs_without_a_task_are_forecast_for_every_task(small, tmp_path, capsys):
    (tmp_path / "target.csv").write_text(f"params,tokens\n{PARAMS},{TOKENS}\n")
    tasks(small, holdout=tmp_path / "target.csv", json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["tasks"]["reading"]["forecasts"][0]["actual"] is None
    assert said["holdout"] is None


def test_wrong_input_is_one_sentence(small, tmp_path):
    rows = small.read_text().splitlines()
    for name, cell, value in (("nan", 3, "nan"), ("share", 4, "41"), ("items", 6, "0")):
        cells = rows[2].split(",")
        cells[cell] = value
        (tmp_path / f"{name}.csv").write_text("\n".join([*rows[:2], ",".join(cells)]) + "\n")
    for name, text in {
        "other": "task,params,tokens\nreadin,1e9,1e10\n",
        "whose": "params,tokens,accuracy\n1e9,1e10,0.5\n",
        "bare": "flops\n1e20\n",
        "empty": "",
    }.items():
        (tmp_path / f"{name}.csv").write_text(text)
    wrong = {
        "nan": "nan.csv: row 2, column 'task_loss': nan is not a positive number",
        "share": "share.csv: row 2, column 'accuracy': 41 is no share",
        "items": "items.csv: row 2, column 'items': 0 is not a positive",
        "empty": "the table is empty",
        "none": "is not a file",
    }
    for name, said in wrong.items():
        with pytest.raises(UserError, match=said):
            tasks(tmp_path / f"{name}.csv")
    targets = {
        "other": "no 'readin'; did you mean 'reading'",
        "whose": "no column 'task' says which",
        "bare": "task 'reading': the law of its loss is one of 'params' and 'tokens'",
    }
    for name, said in targets.items():
        with pytest.raises(UserError, match=said):
            tasks(small, holdout=tmp_path / f"{name}.csv")


def test_the_command_line_and_its_help(small, capsys):
    assert tyro.cli(tasks, args=[str(small), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"tasks", "holdout"}
    with pytest.raises(SystemExit):
        tyro.cli(tasks, args=["--help"])
    assert "nachim tasks small.csv --holdout large.csv" in capsys.readouterr().out
