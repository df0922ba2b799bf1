from __future__ import annotations

import json
from pathlib import Path

import pytest
import tyro

from nachim.app.transfer import transfer
from nachim.spec.error import UserError
from tests.law.swept import CELLS, LR, best, sweep_runs


@pytest.fixture
def table(tmp_path: Path) -> Path:
    sweep_runs(CELLS[:2] + CELLS[6:8], noise=1e-3).write(tmp_path / "sweep.csv")
    return tmp_path / "sweep.csv"


def test_json_is_one_object_with_laws_and_regret(table, capsys):
    assert transfer((table,), at=(1e8, 3e9), json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["laws"].keys() == {"lr", "batch_tokens"}
    law = said["laws"]["lr"]
    assert law["coefficient"] * 1e8 ** law["model"] * 3e9 ** law["data"] == pytest.approx(best(LR, 1e8, 3e9), rel=0.2)
    assert 0 <= said["regret"]["mean"] <= said["regret"]["worst"] < 1
    assert said["regret"]["compared"].keys() >= {"refitted", "steplaw", "deepseek", "power-lines", "steplaw-recipe"}
    assert said["regret"]["leave_one_out"]["refitted"]["sweeps"] == 4
    assert said["regret"]["leave_largest_out"]["refitted"]["sweeps"] == 2
    assert len(said["regret"]["sweeps"]) == 4
    band = said["at"]["bands"]["lr"]
    assert band["low"] < band["best"] < band["high"]
    assert any("fewer than 3 scales" in warning for warning in said["warnings"])


def test_diverged_runs_are_counted_and_a_far_target_is_called_far(table, capsys):
    lines = table.read_text().splitlines()
    cells = lines[3].split(",")
    cells[lines[0].split(",").index("loss")] = "nan"
    table.write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]) + "\n")
    transfer((table,), at=(1e11, 1e12), json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["left_out"]["diverged"] == 1
    assert "1 runs diverged: left out" in said["warnings"]
    assert any("times beyond the sweeps" in warning for warning in said["warnings"])


def test_the_tables_and_the_page(table, tmp_path, capsys):
    transfer((table,), out=tmp_path / "page.html")
    said = " ".join(capsys.readouterr().out.split())
    for words in ("learning rate", "costs ≤ 0.25 %", "largest scale left out", "deepseek"):
        assert words in said
    page = (tmp_path / "page.html").read_text()
    for words in ("Regret at 300 M parameters and 3 G tokens", "How the optimum moves", "Plotly.newPlot"):
        assert words in page


def test_a_rate_alone_has_a_page_too(tmp_path, capsys):
    sweep_runs(CELLS[:2] + CELLS[6:8], noise=1e-3, batches=(0,)).write(tmp_path / "rates.csv")
    transfer((tmp_path / "rates.csv",), out=tmp_path / "page.html", json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["laws"].keys() == {"lr"}
    assert any("no batch law" in warning for warning in said["warnings"])
    assert "Regret at" in (tmp_path / "page.html").read_text()


def test_wrong_input_is_one_sentence(table, tmp_path):
    with pytest.raises(UserError, match="no table of runs"):
        transfer(())
    with pytest.raises(UserError, match="--within"):
        transfer((table,), within=0.0)
    with pytest.raises(UserError, match="--at takes"):
        transfer((table,), at=(-1.0, 1e9))
    with pytest.raises(UserError, match="holds no finished run of a sweep"):
        transfer((tmp_path,))


def test_the_command_line_and_its_help(table, capsys):
    assert tyro.cli(transfer, args=[str(table), "--at", "1e8", "3e9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["at"]["tokens"] == 3e9
    with pytest.raises(SystemExit):
        tyro.cli(transfer, args=["--help"])
    assert "nachim transfer sweep.csv" in capsys.readouterr().out
