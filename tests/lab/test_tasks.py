"""A build's tasks as jobs of an array, or in Ray: the same bytes as here, and a mistake is one sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from nachim.data.deduplicate import Deduplicate
from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline, build
from nachim.data.stage import PerRow
from nachim.data.work import modules_of
from nachim.lab.launch import tasks
from nachim.lab.launch.tasks import RayTasks, SlurmArray, carry_out
from nachim.spec import Files, UserError


@dataclass(frozen=True, kw_only=True)
class Refuses(PerRow):
    """Says that a person must mend something."""

    def one(self, row):
        raise UserError(f"row {row['id']} needs mending")


@pytest.fixture
def pipeline(tmp_path):
    """Thirty texts, some of them alike, in several shards."""
    rows = [{"id": i, "text": f"{i % 25} " * 30 + "and the needle points north"} for i in range(30)]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Pipeline(origins=(Origin(corpus=Files(path=str(path))),), stages=(Deduplicate(),), shard_bytes=500)


@pytest.fixture
def array(tmp_path, monkeypatch):
    """An array whose jobs are done here, one after another."""
    pytest.importorskip("submitit")
    monkeypatch.setattr(tasks, "EVERY_SECONDS", 0)
    return lambda pipeline: SlurmArray(tmp_path / "jobs", 3, modules_of(pipeline), "debug")


def test_an_array_comes_to_the_same_bytes(pipeline, tmp_path, array):
    one = build(pipeline, tmp_path / "one")
    two = build(pipeline, tmp_path / "two", elsewhere=array(pipeline))
    assert one.to_json() == two.to_json()
    assert 0 < one.passed[1].ledger.kept.rows < 30


def test_a_mistake_is_the_sentence_that_the_job_said(pipeline, tmp_path, array):
    wrong = Pipeline(origins=pipeline.origins, stages=(Refuses(),))
    with pytest.raises(UserError, match="row 0 needs mending"):
        build(wrong, tmp_path / "out", elsewhere=array(wrong))


def test_jobs_that_make_nothing_are_one_sentence(pipeline, tmp_path, array, monkeypatch):
    monkeypatch.setattr(tasks, "carry_out", lambda modules, folder, some: None)
    with pytest.raises(UserError, match="1 of 1 shards were not made by 3 arrays of jobs; their logs are in"):
        build(pipeline, tmp_path / "out", elsewhere=array(pipeline))


def test_no_slurm_here(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="no Slurm here"):
        SlurmArray(tmp_path, 2, [])


def test_ray_comes_to_the_same_bytes(pipeline, tmp_path):
    ray = pytest.importorskip("ray")
    one = build(pipeline, tmp_path / "one")
    try:
        two = build(pipeline, tmp_path / "two", elsewhere=RayTasks(modules_of(pipeline), workers=2))
    finally:
        ray.shutdown()
    assert one.to_json() == two.to_json()


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back, for whoever comes after

    class Done:
        def known(self):
            return True

        def carry_out(self):
            raise AssertionError("done already")

    assert carry_out([], str(tmp_path), [Done()]) is None
