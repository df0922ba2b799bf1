from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tyro

from nachim.app.cli import main
from nachim.app.compare import compare, verdict
from nachim.law.compare import compare as worth_of
from nachim.spec.error import UserError
from tests.law.paired import paired


@pytest.fixture
def ladders(tmp_path: Path) -> tuple[Path, Path]:
    for name, obs in zip(("base", "idea"), paired(np.random.default_rng(0), 1.2, labels=True), strict=True):
        (tmp_path / name).mkdir()
        obs.write(tmp_path / name / "observations.csv")
    return tmp_path / "base", tmp_path / "idea"


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    paired(np.random.default_rng(0), 1.0, labels=True)[1].write(tmp_path / "noise.csv")
    return tmp_path / "noise.csv"


def test_json_is_one_object_that_keeps_the_contract(ladders, capsys):
    assert compare(ladders[0], (ladders[1],), json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["low"] < 1.2 < said["high"]
    assert said["low"] < said["multiplier"] < said["high"]
    assert said["p"] < 0.01
    assert said["trend_low"] < said["trend"] < said["trend_high"]
    assert said["pairs"] == 30
    assert said["idea"] == str(ladders[1])
    for scale in said["scales"]:
        assert scale["low"] < scale["multiplier"] < scale["high"]


def test_several_ideas_have_their_false_discoveries_controlled(ladders, noise, capsys):
    compare(ladders[0], (ladders[1], noise), json=True)
    good, nothing = json.loads(capsys.readouterr().out)["ideas"]
    assert good["q"] == pytest.approx(min(2 * good["p"], nothing["p"]))
    assert good["q"] < 0.05 <= nothing["q"]
    assert sorted((good["trend_q"], nothing["trend_q"])) >= sorted((good["trend_p"], nothing["trend_p"]))


def test_the_table_and_the_page(ladders, noise, tmp_path, capsys):
    compare(ladders[0], (ladders[1], noise), out=tmp_path / "worth.html")
    said = " ".join(capsys.readouterr().out.split())
    for words in ("idea saves compute", "noise: no worth shown", "30 pairs of 5 chains"):
        assert words in said
    page = (tmp_path / "worth.html").read_text()
    for words in ("idea saves compute", "Multiplier of compute", "Plotly.newPlot", "95 % interval"):
        assert words in page


def test_a_page_of_one_idea_has_its_cards(ladders, tmp_path):
    compare(ladders[0], (ladders[1],), out=tmp_path / "worth.html", json=True)
    assert "p, were it worth nothing" in (tmp_path / "worth.html").read_text()


def test_the_verdict_follows_the_interval_and_the_trend():
    rng = np.random.default_rng(1)
    dear = worth_of(*paired(rng, 0.8))
    assert "costs compute: it needs 1.2" in verdict("dear", dear)
    low, trend = np.log(6 * 3e5**2 * 5), -0.03
    vanishing = worth_of(*paired(rng, lambda flops: 1.3 * (flops / np.exp(low)) ** trend))
    assert verdict("early", vanishing).endswith("the difference vanishes with scale.")
    growing = worth_of(*paired(rng, lambda flops: 1.05 * (flops / np.exp(low)) ** -trend))
    assert verdict("late", growing).endswith("the difference grows with scale.")


def test_wrong_input_is_one_sentence(ladders, tmp_path):
    base, idea = ladders
    table = base / "observations.csv"
    rows = table.read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join(rows[:2]) + "\n")
    (tmp_path / "nan.csv").write_text("\n".join([*rows[:2], rows[2].replace(rows[2].split(",")[1], "nan")]) + "\n")
    (tmp_path / "code.py").write_text("from math import sqrt\n\n\ndef without(run):\n    return run\n")
    wrong = {
        (base,): "name the ladder of at least one idea",
        (base, tmp_path / "none"): "there is no .*none",
        (base, tmp_path): "holds no ladder",
        (base, tmp_path / "one.csv"): "one: the baseline has 30 runs and the idea 1 run: at least 4",
        (base, tmp_path / "nan.csv"): "nan.csv: row 2, column 'loss': nan is not a finite number",
        (base, base): "base: every run of the idea has the loss of the baseline's",
        (base, idea, idea): "an idea is named twice",
        (base, tmp_path / "code.py:withou"): "has no function 'withou'; did you mean 'without'",
        (base, tmp_path / "code.py"): "has no function 'idea'; known: without$",
        (base, tmp_path / "none.py:idea"): "no such file",
        (base, tmp_path / "code.py:without"): "has no ladder.json",
    }
    for (first, *ideas), said in wrong.items():
        with pytest.raises(UserError, match=said):
            compare(first, tuple(ideas))


def test_a_wrong_command_exits_with_2(ladders, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["nachim", "compare", str(ladders[0]), str(ladders[0] / "none")])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("nachim: there is no ")


def test_the_command_line_and_its_help(ladders, capsys):
    assert tyro.cli(compare, args=[*map(str, ladders), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["p"] < 0.01
    with pytest.raises(SystemExit):
        tyro.cli(compare, args=["--help"])
    said = capsys.readouterr().out
    assert "nachim compare runs/base runs/idea" in said
    assert "FILE.py:NAME" in said
