"""Trackers hold what the run wrote: each row once, by the packages themselves; and their failure is not the run's."""

from __future__ import annotations

import json
import sqlite3
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nachim.app.track import track as verb
from nachim.lab import track
from nachim.lab.track import replay, tracking
from nachim.spec import UserError
from nachim.train import metrics, samples
from tests.train.tiny import tiny_run

STEPS = 6


def write_run(out: Path, steps: int = STEPS, shift: float = 0.0) -> Path:
    """The files of a run of so many steps whose losses are known; every second step was sampled."""
    tiny_run(20).save(out / "run.json")
    rows = [
        {"step": step, "tokens": 32 * step, "loss": loss_at(step) + shift, "lr": 0.01, "grad_norm": 1.0, "seconds": 0.5}
        for step in range(1, steps + 1)
    ]
    metrics.write(pa.Table.from_pylist(rows, schema=metrics.SCHEMA), out / "metrics.parquet")
    found = [
        {"step": step, "quantity": "weight", "name": "head.weight", "value": float(step)}
        for step in range(1, steps + 1, 2)
    ]
    samples.write(pa.Table.from_pylist(found, schema=samples.SCHEMA), out / samples.STATISTICS)
    return out


def loss_at(step: int) -> float:
    return 4.0 / step


def in_tensorboard(out: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "track" / "tensorboard"))
    found.Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_every_row_once_however_often_it_is_told(tmp_path):
    out = write_run(tmp_path / "run", steps=4)
    assert replay(out, "tensorboard") == (4, f"tensorboard --logdir {out / 'track' / 'tensorboard'}")
    assert replay(out, "tensorboard") == (0, "")
    write_run(out)
    assert replay(out, "tensorboard")[0] == 2
    found = in_tensorboard(out)
    assert found["loss"] == [(step, pytest.approx(loss_at(step))) for step in range(1, STEPS + 1)]
    assert found["weight/head.weight"] == [(1, 1.0), (3, 3.0), (5, 5.0)]
    assert "bpb" not in found and "step" not in found


def test_a_run_that_was_rolled_back_is_told_anew(tmp_path):
    out = write_run(tmp_path / "run")
    replay(out, "tensorboard")
    write_run(out, steps=8, shift=0.25)
    assert replay(out, "tensorboard")[0] == 8
    assert in_tensorboard(out)["loss"] == [(step, pytest.approx(loss_at(step) + 0.25)) for step in range(1, 9)]
    assert json.loads((out / "track.json").read_text())["tensorboard"]["number"] == 2


def test_fewer_rows_than_were_told_are_waited_for(tmp_path):
    out = write_run(tmp_path / "run")
    replay(out, "tensorboard")
    write_run(out, steps=3)  # the newest checkpoint was damaged: the same steps come again
    assert replay(out, "tensorboard")[0] == 0
    write_run(out, steps=7)
    assert replay(out, "tensorboard")[0] == 1
    assert [step for step, _ in in_tensorboard(out)["loss"]] == list(range(1, 8))


def test_trackio_holds_the_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    out = write_run(tmp_path / "first")
    assert verb(out, "trackio", json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"rows": STEPS, "to": "trackio", "where": "trackio show --project nachim, run first"}
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step) for name, step, _ in rows] == [("first", step) for step in range(1, STEPS + 1)]
    values = [json.loads(text) for _, _, text in rows]
    assert [each["loss"] for each in values] == [loss_at(step) for step in range(1, STEPS + 1)]
    assert values[2]["weight/head.weight"] == 3.0 and "weight/head.weight" not in values[3]


def wandb_records(path: Path) -> list[Any]:
    """The records of wandb's file: a log of LevelDB's format whose pieces are all whole, after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, at + 4)
        assert kind == 1
        found.append(Record.FromString(data[at + 7 : at + 7 + length]))
        at += 7 + length
    return found


def test_wandb_writes_files_where_nobody_is_logged_in(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = write_run(tmp_path / "first")
    rows, where = replay(out, "wandb")
    assert rows == STEPS and where.startswith("wandb sync ")
    (file,) = (out / "track" / "wandb").glob("offline-run-*/*.wandb")
    assert f"{tiny_run(20).fingerprint[:12]}-1" in file.name
    found = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(file)
        if record.HasField("history")
    ]
    assert [(row["_step"], row["loss"]) for row in found] == [(step, loss_at(step)) for step in range(1, STEPS + 1)]
    assert [row.get("weight/head.weight") for row in found] == [1.0, None, 3.0, None, 5.0, None]


def test_what_a_tracker_raises_is_one_sentence_and_nothing_counts_as_told(tmp_path, monkeypatch):
    class Gone:
        where = "nowhere"

        def __init__(self, *given: object) -> None:
            raise ConnectionError("no route to the server")

    monkeypatch.setitem(track.TRACKERS, "wandb", Gone)
    out = write_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"wandb did not take the rows of .*: no route to the server"):
        replay(out, "wandb")
    assert not (out / "track.json").exists()


def test_what_cannot_be_tracked_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"holds no run: it has no run\.json"):
        replay(tmp_path, "tensorboard")
    with pytest.raises(UserError, match="there is no tracker mlflow: there are tensorboard, trackio, wandb"):
        replay(tmp_path, "mlflow")
    monkeypatch.setattr(track.importlib, "util", types.SimpleNamespace(find_spec=lambda name: None))
    with pytest.raises(UserError, match=r"wandb is not installed: `pip install 'nachim\[wandb\]'`"):
        replay(tmp_path, "wandb")


def test_a_run_in_training_is_followed_and_a_broken_tracker_is_said_once(tmp_path):
    said: list[str] = []
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    broken.mkdir()
    (broken / "track").write_text("in the way of the folder")
    with tracking(whole, "tensorboard", said.append), tracking(broken, "tensorboard", said.append):
        write_run(whole)
        write_run(broken)
    assert [step for step, _ in in_tensorboard(whole)["loss"]] == list(range(1, STEPS + 1))
    assert len(said) == 1 and said[0].startswith("tensorboard failed and follows no more, the run goes on: ")
    assert "try `nachim track" in said[0]
    assert replay(whole, "tensorboard")[0] == 0


def test_the_process_that_follows_does_without_torch():
    code = "import sys, nachim.lab.track; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_tracker_is_no_process(tmp_path):
    with tracking(tmp_path, None, print):
        assert not list(tmp_path.iterdir())
