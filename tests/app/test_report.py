from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import tyro

from nachim.app import figures, tables
from nachim.app.page import Html, document, flat, power, safe, short, table
from nachim.app.record import Record, open_record
from nachim.app.report import figures_of, report, verdict_of, write_report
from nachim.spec.error import UserError
from tests.app.studies import MACHINE, Faker, begin_study, climb, finished_study, seal_forecast

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return finished_study(tmp_path_factory.mktemp("studies") / "first")


@pytest.fixture(scope="module")
def record(study) -> Record:
    return open_record(study)


@pytest.fixture
def copy(study, tmp_path) -> Path:
    """A finished study of the test's own, to spoil."""
    return shutil.copytree(study, tmp_path / "copy")


@pytest.fixture(scope="module")
def drawn(record) -> Callable[[str], go.Figure]:
    """The figure of that title."""
    made = {name: fig for name, fig, _, _ in figures_of(record)}
    return lambda title: made[title]


@pytest.fixture
def unread(monkeypatch) -> None:
    """For what has nothing to do with the law, which takes a while to fit."""
    monkeypatch.setattr("nachim.app.record._read_law", lambda record: None)


def own_markup(page: str) -> str:
    """The page without its scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def named(fig: go.Figure, name: str) -> go.Scatter:
    return next(trace for trace in fig.data if trace.name == name)


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_verb_writes_a_page_that_carries_all_it_shows(copy, capsys):
    assert tyro.cli(report, args=[str(copy), "--json"]) == 0
    path = copy / "report.html"
    assert json.loads(capsys.readouterr().out) == {"report": str(path)}
    page = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert page.count("Plotly.newPlot(") == 8
    assert page.count("plotly.js v") == 1
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=(?!\"data:)", own_markup(page))
    assert not re.search(r"<script[^>]+src=", page[page.index("<body>") :])
    assert "://" not in own_markup(page)


def test_without_json_it_prints_the_path(copy, capsys):
    assert report(copy) == 0
    assert capsys.readouterr().out.strip() == str(copy / "report.html")


def test_the_page_says_the_verdict_and_every_number_it_rests_on(record, copy):
    page = own_markup(write_report(copy).read_text(encoding="utf-8"))
    sealed, verdict = record.sealed, record.verdict
    kind, sentence = verdict_of(record)
    assert kind == "good"
    assert sentence.startswith(f"Forecast {sealed['bpb']:.4f} bpb ({sealed['low']:.4f} to {sealed['high']:.4f}); ")
    assert f"measured {verdict['measured']:.4f}: inside the interval" in sentence
    assert sentence in page
    for said in (
        sealed["sha256"],
        sealed["observations_sha256"],
        "c0ffee" * 10,
        "nachim quickstart --minutes 10 --out",
        "torch 2.9.0",
        "12 documents were duplicates",
        "200,000,000",
        "10.0 times the ladder&#x27;s top",
        "test box",
    ):
        assert said in page
    assert all(record.checks.values())
    assert len(record.checks) == 5
    assert record.gaps == []


def test_mfu_is_held_against_the_measured_peak_of_the_runs_threads(record):
    result = record.target.result
    rate = result["flops_per_second"] + result["head_flops_per_second"]
    assert tables.mfu(record.target, MACHINE) == pytest.approx(rate / MACHINE.fp32_all)
    assert tables.mfu(record.ladder[0], MACHINE) < 1
    assert tables.mfu(record.target, None) is None


def test_the_star_is_what_was_measured_and_the_band_holds_the_forecast(record, drawn):
    fig, sealed = drawn("Loss against compute"), record.sealed
    assert named(fig, "measured").y == (record.verdict["measured"],)
    assert named(fig, "measured").x == (sealed["flops"],)
    forecast = named(fig, "sealed forecast")
    assert forecast.y[0] + forecast.error_y.array[0] == pytest.approx(sealed["high"])
    assert forecast.y[0] - forecast.error_y.arrayminus[0] == pytest.approx(sealed["low"])
    band = named(fig, "90 % prediction interval")
    half = len(band.x) // 2
    high, low = band.y[:half], band.y[half:][::-1]
    across, line = band.x[:half], named(fig, "law at its optimum").y
    assert np.all((low < line) & (line < high))
    assert across[-1] > sealed["flops"]
    assert np.interp(sealed["flops"], across, low) < sealed["bpb"] < np.interp(sealed["flops"], across, high)
    points = sum(len(trace.x) for trace in fig.data if trace.text is not None)
    assert points == len(record.obs)


def test_the_other_figures_show_the_record(record, drawn):
    run = record.sealed_run
    surface = drawn("The loss surface")
    assert (named(surface, "target").x, named(surface, "target").y) == ((run.flops_per_token,), (run.train.tokens,))
    split = drawn("What to build with more compute")
    law, published = named(split, "law"), named(split, "DeepSeek's law")
    assert np.polyfit(np.log(law.x), np.log(law.y), 1)[0] == pytest.approx(record.reading.exponents["model"])
    assert np.polyfit(np.log(published.x), np.log(published.y), 1)[0] == pytest.approx(0.5243)
    minima = [minimum.x for minimum in record.second.minima if not minimum.at_edge]
    assert list(named(drawn("Equal compute, other shapes"), "parabola's minimum").x) == minima
    tries = named(drawn("Learning rate and batch"), "sweep run")
    assert len(tries.x) == 4
    assert list(tries.x) == sorted(tries.x)
    assert tries.y[1] == min(tries.y)
    validated = named(drawn("Training curves"), "target, validation")
    assert len(validated.x) == 8
    assert validated.y[-1] == pytest.approx(record.target.result["validation"]["loss"])
    laws = drawn("Would it have been right before?").data
    assert len(laws) == len(record.reading.fits)
    for trace, name in zip(laws, record.reading.fits, strict=True):
        far, off = np.log(trace.x), np.abs(np.log1p(trace.y / 100))
        assert 100 * (far * off).sum() / far.sum() == pytest.approx(record.reading.errors[name])


def test_residuals_are_in_percent_and_the_band_is_the_noise_of_repeats(record, drawn):
    fig = drawn("What the law does not explain")
    shown = np.concatenate([trace.y for trace in fig.data if trace.text is not None])
    assert np.sort(shown) == pytest.approx(np.sort(100 * np.expm1(record.reading.fit.residuals)))
    assert max(named(fig, "90 % of run noise").y) == pytest.approx(100 * np.expm1(1.645 * record.repeats))
    assert not any(
        trace.name == "90 % of run noise" for trace in figures.residuals(record.obs, record.reading, None).data
    )


def test_hostile_text_stays_text(copy):
    change(copy / "machine.json", name=EVIL)
    change(copy / "corpus.json", name=EVIL, notes=[EVIL])
    (copy / "commands.json").write_text(json.dumps([{"argv": ["nachim", EVIL], "at": EVIL, "version": EVIL}]))
    run = next(path for path in (copy / "ladder").iterdir())
    (run / "diverged.json").write_text(json.dumps({"why": EVIL}))
    (copy / "observations.csv").write_text((copy / "observations.csv").read_text().replace("2x32", EVIL))
    page = write_report(copy.rename(copy.parent / "<b>copy")).read_text(encoding="utf-8")
    assert "alert(1)" in page
    for bad in ("<script>alert", "<img", "<b>copy"):
        assert bad not in page[page.index("<body>") :]


def test_a_study_that_has_hardly_begun(tmp_path):
    begin_study(tmp_path / "new")
    page = write_report(tmp_path / "new").read_text(encoding="utf-8")
    assert "No forecast yet: this study is unfinished." in page
    assert "The sweep of learning rate and batch has not begun." in page
    assert page.count("Not drawn") == 8
    assert "plotly.js v" not in page


def test_an_unfinished_ladder_says_how_far_it_came(tmp_path):
    root = tmp_path / "half"
    recipe, plan = begin_study(root)
    ladder = climb(root, recipe, plan, Faker(), skip=4)
    Faker().begin(root / "ladder" / "running", ladder.runs[-1], 1.5, share=0.5)
    page = write_report(root).read_text(encoding="utf-8")
    assert f"The ladder is unfinished: {len(ladder.runs) - 4} of {len(ladder.runs)} runs have a result." in page
    assert page.count("Plotly.newPlot(") == 3
    assert re.search(r"(49|50) % done", page)


def test_a_forecast_without_its_verdict(tmp_path):
    root = tmp_path / "sealed"
    recipe, plan = begin_study(root)
    run = seal_forecast(root, recipe, plan, climb(root, recipe, plan, Faker()))
    Faker().begin(root / "target", run, 1.2, share=0.25)
    record = open_record(root)
    kind, sentence = verdict_of(record)
    assert kind == "wait"
    assert "the target run has not been judged yet" in sentence
    assert any(re.search(r"2[45] % of its steps", gap) for gap in record.gaps)
    (root / "refused.json").write_text('{"why": "an older try"}')
    assert "older try" not in verdict_of(open_record(root))[1]


def test_a_refused_study_says_why(tmp_path):
    root = tmp_path / "refused"
    recipe, plan = begin_study(root)
    climb(root, recipe, plan, Faker(fall=0.2, begins=plan.levels[-1] / 1.5))
    (root / "refused.json").write_text(json.dumps({"why": "the loss falls below what the cheaper runs forecast"}))
    page = write_report(root).read_text(encoding="utf-8")
    assert "No forecast was made: the loss falls below what the cheaper runs forecast." in page
    change(root / "refused.json", why="no forecast at 1e+14 FLOPs: it would be wrong")
    assert verdict_of(open_record(root))[1] == "No forecast at 1e+14 FLOPs: it would be wrong."
    assert "Change of regime" in page
    assert page.count("Plotly.newPlot(") == 8


@pytest.mark.parametrize(
    ("file", "fields", "what"),
    [
        ("forecast.json", {"bpb": 1.0}, "the forecast is as it was sealed"),
        ("verdict.json", {"measured": 1.0}, "measurement is the target run"),
        ("verdict.json", {"sha256": "0"}, "the verdict is on this forecast"),
    ],
)
def test_files_that_do_not_belong_together_get_no_verdict(unread, copy, file, fields, what):
    change(copy / file, **fields)
    record = open_record(copy)
    assert [name for name, holds in record.checks.items() if not holds and what in name]
    assert verdict_of(record)[0] == "bad"
    page = own_markup(write_report(copy).read_text(encoding="utf-8"))
    assert "no verdict can be given" in page
    assert "Do not trust this verdict" in page


def test_a_changed_table_of_observations_is_noticed(unread, copy):
    with open(copy / "observations.csv", "a", encoding="utf-8") as file:
        file.write("\n")
    assert not open_record(copy).checks["the law was fitted to this table of observations"]


@pytest.mark.parametrize("name", ["study", "plan", "corpus", "recipe", "ladder", "machine", "forecast", "verdict"])
@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"part": "Run"}', '"text"'])
def test_a_file_that_is_not_what_a_study_writes_is_named(unread, tmp_path, name, content):
    (tmp_path / "study.json").write_text("{}")
    (tmp_path / f"{name}.json").write_text(content)
    found = open_record(tmp_path)
    assert verdict_of(found) == ("wait", "No forecast yet: this study is unfinished.")
    if content != '{"part": "Run"}' or name in ("machine", "forecast", "verdict"):
        assert any(f"{name}.json" in gap for gap in found.gaps)
    write_report(tmp_path)


def test_observations_that_determine_no_law(copy):
    lines = (copy / "observations.csv").read_text().splitlines()
    (copy / "observations.csv").write_text("\n".join(lines[:4]))
    record = open_record(copy)
    assert any("No law could be fitted" in gap for gap in record.gaps)
    assert "<h2>Loss against compute</h2><figure>" in write_report(copy).read_text(encoding="utf-8")


def test_what_is_no_study_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        write_report(tmp_path / "none")
    with pytest.raises(UserError, match="holds no study"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_pieces_of_a_page():
    assert safe("<a&'\">") == "&lt;a&amp;&#x27;&quot;&gt;"
    assert safe(Html("<b>")) == "<b>"
    assert "<td>&lt;</td>" in table(("a", "b"), [["<", 1]])
    assert "<title>&lt;</title>" in document("<", "")
    assert [power(3.14e12), power(1e-5), power(0.0)] == ["3.14 × 10¹²", "1.00 × 10⁻⁵", "0"]
    assert [short(12_345.0), short(9.9e11), short(5.0)] == ["12.3 k", "990 G", "5 "]
    nested = {"part": "A", "b": {"part": "B", "c": 1.5}, "d": [1, 2], "e": [{}, {}]}
    assert list(flat(nested)) == [("b", "B"), ("b.c", "1.5"), ("d", "1, 2"), ("e", "2 of them")]


def test_ticks_are_round_and_curves_are_averaged():
    assert figures.round_ticks(1e3, 1e6) == [1e3, 1e4, 1e5, 1e6]
    assert figures.round_ticks(1.3, 2.4) == [1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6]
    assert 4 <= len(figures.round_ticks(1.0, 1.05)) <= 12
    tokens, loss = figures.smooth(np.arange(1.0, 10_001), np.full(10_000, 2.0))
    assert 60 < len(tokens) <= 100
    assert loss == pytest.approx(2.0)
    assert len(figures.smooth(np.array([1.0]), np.array([np.nan]))[0]) == 0
