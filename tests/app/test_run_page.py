"""The page of a single run: what it says, draws and carries, whatever state the run is in."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from nachim.app import run_figures
from nachim.app.report import report
from nachim.app.run_page import cards_of, figures_of, page_of_run, verdict_of
from nachim.app.run_record import RunRecord, is_run, open_run
from nachim.spec import Machine, MoE, Run, SkipStep, UserError
from nachim.train.heartbeat import Heartbeat, Journal
from nachim.train.loop import Watch
from nachim.train.statistics import Statistics
from tests.train.tiny import ALWAYS, NEVER, Kill, go, kill_at, tiny_run

STEPS = 12
MACHINE = Machine(
    name="test", device="cpu", cores=2, fp32_one_thread=1e9, fp32_all=2e9, bf16_one_thread=1e9, bf16_all=2e9
)


def spec() -> Run:
    run = tiny_run(STEPS, times=3, on_spike=SkipStep())
    return dataclasses.replace(run, model=dataclasses.replace(run.model, ffn=MoE(experts=4, active=2, d_ff=8)))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "<first>"
    go(spec(), folder, watch=Watch(onlookers=(Statistics(2),)))
    MACHINE.save(folder / "machine.json")
    return folder


@pytest.fixture(scope="module")
def record(out) -> RunRecord:
    return open_run(out)


def test_the_verb_writes_the_page_of_a_run(out, capsys):
    assert is_run(out) and report(out, json=True) == 0
    path = Path(json.loads(capsys.readouterr().out)["report"])
    page = path.read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert path == out / "report.html" and page.count("Plotly.newPlot(") == 9
    assert "://" not in markup and not re.search(r"<script[^>]+src=", page[page.index("<body>") :])
    assert "&lt;first&gt;" in markup and "<first>" not in markup
    assert "Load of every expert" in markup and spec().fingerprint in markup


def test_a_finished_run_says_its_loss(record):
    kind, said = verdict_of(record)
    loss, bpb = (record.result["validation"][name] for name in ("loss", "bpb"))
    assert kind == "good" and f"validation loss {loss:.4f} nat/token, {bpb:.4f} bits/byte" in said
    found = {what: number for what, number, _ in cards_of(record)}
    assert found["training"] == "384 tokens" and not record.gaps


def test_speed_and_mfu_are_those_of_the_median_step(record):
    rows = record.rows
    rate = float(np.median(32 / rows["seconds"]))
    run = record.run
    threads = record.result["threads"]
    work = run.flops_per_token + run.model.head_flops_per_token
    assert record.mfu == pytest.approx(rate * work / MACHINE.peak("fp32", threads))
    assert f"{rate:,.0f} tokens/s" in dict((what, number) for what, number, _ in cards_of(record))["speed"]


def test_maps_hold_what_was_sampled_in_the_models_order(record):
    heat = record.heats["weight"]
    assert list(heat.steps) == [1, 3, 5, 7, 9, 11] and heat.names[0] == "embedding.weight"
    drawn = run_figures.heat(heat, "weight").data[0]
    assert np.allclose(10 ** np.asarray(drawn.z, float), heat.values, equal_nan=True) or (heat.values == 0).any()
    loads = record.heats["load"]
    assert loads.values.shape == (8, 6) and np.allclose(loads.values.reshape(2, 4, 6).sum(1), 4)
    assert run_figures.heat(loads, "load").data[0].zmid == 1


def test_curves_hold_every_loss_and_validation(record):
    fig = run_figures.loss(record)
    step, mean, validation = fig.data[0], fig.data[1], fig.data[2]
    assert np.array_equal(step.y, record.rows["loss"]) and list(validation.x) == [32 * 4, 32 * 8, 32 * 12]
    assert np.array_equal(mean.y, step.y), "a fiftieth of twelve steps is one"


def test_what_the_guard_did_is_on_the_page(record):
    spoilt = dataclasses.replace(record, rows={name: column.copy() for name, column in record.rows.items()})
    spoilt.rows["skipped"][3], spoilt.rows["passed_tokens"][6] = 1, 64
    names = [trace.name for trace in run_figures.loss(spoilt).data]
    assert "skipped step" in names and "rolled back, and on with later data" in names
    assert ("guard", "2", "1 steps skipped, 1 roll-backs") in cards_of(spoilt)


def test_an_unfinished_run_has_a_page_that_says_where_it_is(tmp_path):
    with pytest.raises(Kill):
        go(spec(), tmp_path, watch=Watch(onlookers=(Statistics(1),)), checkpoint_seconds=ALWAYS, on_step=kill_at(5))
    Heartbeat(tmp_path, STEPS).beat(5)
    record = open_run(tmp_path)
    assert verdict_of(record)[0] == "wait" and "In training: step 5 of 12" in verdict_of(record)[1]
    assert [title for title, _, _ in figures_of(record)][:3] == ["Loss", "Learning rate and gradients", "Speed"]
    for state, kind, words in (("stopped", "wait", "Stopped at step 5 of 12"), ("failed", "bad", "Failed at step 5")):
        Heartbeat(tmp_path, STEPS).beat(5, state)
        assert verdict_of(open_run(tmp_path))[0] == kind and words in verdict_of(open_run(tmp_path))[1]


def test_a_run_without_a_step_has_a_page_too(tmp_path):
    spec().save(tmp_path / "run.json")
    record = open_run(tmp_path)
    assert verdict_of(record) == ("wait", "Not begun: 12 steps are to be taken.") and len(record.gaps) == 2
    assert "What is missing" in page_of_run(record)


def test_what_is_damaged_is_a_gap(out, tmp_path):
    spec().save(tmp_path / "run.json")
    for name in ("metrics.parquet", "statistics.parquet", "result.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes()[:-9])
    Journal(tmp_path, lambda text: None).record("it <was> killed")
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"time": "half of a li')
    record = open_run(tmp_path)
    told = " ".join(record.gaps)
    assert all(name in told for name in ("metrics.parquet", "statistics.parquet", "result.json"))
    assert "it &lt;was&gt; killed" in page_of_run(record) and len(record.journal) == 1


def test_a_folder_that_is_neither_study_nor_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no study"):
        report(tmp_path)


def test_running_means_are_those_of_a_loop():
    values = np.random.default_rng(0).normal(size=230)
    values[40] = math.nan
    expected = [np.nanmean(values[max(0, at - 3) : at + 1]) for at in range(230)]
    assert np.allclose(run_figures.running_mean(values), expected)


def test_long_curves_are_thinned_to_means():
    x, y = run_figures.thinned(np.arange(1.0, 4001), np.tile([1.0, 3.0, math.nan, 2.0], 1000))
    assert len(x) <= run_figures.POINTS and x[-1] == 4000 and np.nanmin(y) >= 1 and np.nanmax(y) <= 3
    same = run_figures.thinned(np.arange(5.0), np.arange(5.0))
    assert np.array_equal(same[0], np.arange(5.0)) and NEVER > 0


def test_texts_of_a_mixture_are_drawn_apart(record):
    rows, steps = record.rows, record.rows["step"]
    apart = np.where(steps == steps[-1], 9.5, np.nan)
    fig = run_figures.loss(dataclasses.replace(record, rows=rows | {"validation_loss/old": apart}))
    drawn = {trace.name: trace for trace in fig.data}
    assert list(drawn["validation, old"].y) == [9.5]
    assert list(drawn["validation"].y) == list(rows["validation_loss"][np.isfinite(rows["validation_loss"])])
    assert fig.layout.yaxis.range is None or 10 ** fig.layout.yaxis.range[1] >= 9.5
