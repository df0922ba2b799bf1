"""`nachim next`: the plan as one JSON object, as a table for people, and mistakes in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nachim.app.next import next_
from nachim.law import LAWS
from nachim.spec import UserError
from tests.law.ladders import ladder


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Finished runs below 3e15 FLOP, and the dearer ones of the same ladder as candidates."""
    obs, folder = ladder(LAWS["chinchilla"], np.random.default_rng(0), 0.003), tmp_path_factory.mktemp("next")
    done = obs.flops < 3e15
    obs.subset(done).write(folder / "runs.csv")
    rows = zip(obs.params[~done], obs.tokens[~done], strict=True)
    text = "".join(f"{params},{tokens}\n" for params, tokens in rows)
    (folder / "candidates.csv").write_text("params,tokens\n" + text)
    return folder / "runs.csv", folder / "candidates.csv"


def test_json_is_one_object_with_the_plan_and_the_ranking(tables, capsys):
    assert next_(*tables, flops=1e18, json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.keys() == {"percent", "helps", "why", "least", "floor", "plan", "ranked"}
    widths = [said["percent"], *(step["percent"] for step in said["plan"])]
    assert said["helps"] and widths == sorted(widths, reverse=True) and widths[-1] >= said["least"] >= said["floor"]
    spends = [step["spent"] for step in said["plan"]]
    assert spends == pytest.approx(np.cumsum([step["cost"] for step in said["plan"]]))
    rows = tables[1].read_text().splitlines()
    assert sorted(each["row"] for each in said["ranked"]) == list(range(1, len(rows)))
    first = said["plan"][0]
    params, tokens = (float(cell) for cell in rows[first["row"]].split(","))
    assert first["cost"] == pytest.approx(6 * params * tokens)


def test_people_read_the_sentence_and_the_table(tables, capsys):
    assert next_(*tables, flops=1e18, within=3) == 0
    text = capsys.readouterr().out
    assert "at the target costs" in text and "runs to make, in this order" in text
    assert next_(*tables, flops=1e18, within=500) == 0
    assert "no further run is needed" in capsys.readouterr().out


def test_a_target_must_be_one_of_two(tables):
    with pytest.raises(UserError, match="either a compute `flops`, or a real shape"):
        next_(*tables)
    with pytest.raises(UserError, match="give the target's `flops`"):
        next_(*tables, x=1e9, tokens=1e10, know="allocation")
