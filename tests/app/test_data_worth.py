from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console, Group

from nachim.app.cli import main
from nachim.app.data_worth import show, sources_of, told_of
from nachim.app.data_worth_page import write_page
from nachim.data.pipeline import Pipeline
from nachim.law.compare import compare_all
from nachim.law.compare_ahead import ahead
from nachim.spec import Files, UserError
from nachim.spec.disk import write_text
from tests.law.paired import paired

RECIPES = """
from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline
from nachim.spec import Stdlib

def pipeline():
    return Pipeline(origins=(Origin(corpus=Stdlib()),))

def number():
    return 7
"""


@pytest.fixture
def told(tmp_path: Path):
    """A study's end: one idea worth 1.2, whose larger rung came out inside, and what its folder holds."""
    base, idea = paired(np.random.default_rng(0), 1.2, labels=True)
    found = compare_all(base, {"clean": idea})
    flops = float(4 * base.flops.max())
    said = ahead(found["clean"], 1e8, flops / 1e8, 2)
    sealed = {"flops": flops, "flops_per_token": 1e8, "tokens": int(flops / 1e8), "pairs": 2, "sealed_at": "now"}
    write_text(tmp_path / "forecast.json", json.dumps(sealed | {"sha256": "beef"}))
    count = {"rows": 900, "bytes": 9_000_000}
    stages = [{"stage": "read", "came": count, "kept": count, "dropped": {}}]
    gone = {"near duplicate": {"rows": 100, "bytes": 1_000_000}}
    stages.append({"stage": "dedup", "came": count, "kept": {"rows": 800, "bytes": 8_000_000}, "dropped": gone})
    write_text(tmp_path / "documents.json", json.dumps({"raw": stages[:1], "clean": stages}))
    middle, low, high = said.ratio
    judged = {
        "ideas": {
            "clean": {
                "sealed": {"ratio": list(said.ratio), "multiplier": list(said.multiplier)},
                "measured": {"ratio": middle, "ratios": [low, high], "multiplier": said.multiplier[0]},
                "inside": True,
                "together": {"flops": flops, "multiplier": 1.21, "low": 1.15, "high": 1.27},
            }
        },
        "losses": {"raw": [2.5, 2.6], "clean": [2.4, 2.5]},
        "epochs": {"raw": {"text": 0.41}, "clean": {"text": 0.52}},
    }
    return told_of(tmp_path, "raw", found, judged), found


def test_everything_is_told_as_json(told):
    object_, _ = told
    (idea,) = json.loads(json.dumps(object_))["ideas"]
    assert idea["name"] == "clean"
    assert idea["low"] < 1.2 < idea["high"]
    assert idea["sealed"]["multiplier"][1] < idea["measured"]["multiplier"] < idea["sealed"]["multiplier"][2]
    assert object_["rung"]["losses"]["raw"] == [2.5, 2.6]


def test_a_person_reads_worth_forecast_and_documents(told):
    console = Console(width=160)
    with console.capture() as caught:
        console.print(Group(*show(*told)))
    said = " ".join(caught.get().split())
    for words in (
        "clean saves compute",
        "30 pairs of 5 chains",
        "inside the sealed",
        "1.210 (1.150–1.270)",
        "clean: 800 of 900 documents, 8.0 MB, read 0.52 times over by the larger rung",
    ):
        assert words in said


def test_the_page_has_the_figure_the_seal_and_the_documents(told, tmp_path):
    write_page(tmp_path / "worth.html", *told)
    page = (tmp_path / "worth.html").read_text()
    for words in ("Plotly.newPlot", "clean, sealed", "clean, measured", "SHA-256 beef", "100 near duplicate", "pair 2"):
        assert words in page


def test_a_data_set_is_a_recipe_or_text(tmp_path):
    (tmp_path / "mine.py").write_text(RECIPES)
    (tmp_path / "notes.txt").write_text("hello")
    found = sources_of([tmp_path / "mine.py", tmp_path / "notes.txt"])
    assert list(found) == ["mine", "notes"]
    assert isinstance(found["mine"], Pipeline)
    assert found["notes"] == Files(path=str(tmp_path / "notes.txt"))
    with pytest.raises(UserError, match="returned a int: a data set is a Pipeline"):
        sources_of([Path(f"{tmp_path / 'mine.py'}:number")])
    with pytest.raises(UserError, match="two data sets are called notes"):
        sources_of([tmp_path / "notes.txt"] * 2)
    with pytest.raises(UserError, match="no such file or folder"):
        sources_of([tmp_path / "nowhere"])


def test_the_verb_says_what_is_wrong_and_exits_with_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["nachim", "data", "worth", str(tmp_path / "no.txt"), "--out", str(tmp_path / "o")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no such file or folder" in capsys.readouterr().err
