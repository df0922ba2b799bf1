"""The standard library's listing, and Hugging Face data sets without the network."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest

from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline, build
from nachim.data.read import Report
from nachim.data.shards import read_shard
from nachim.data.source import open_source
from nachim.spec.data import Corpus, HuggingFace, Stdlib
from nachim.spec.error import UserError


def test_the_listing_of_the_standard_library():
    source = open_source(Stdlib())
    names = [path.as_posix() for path, _, _ in ((Path(p), s, t) for p, s, t in source.listing())]
    assert source.name.startswith("python-3.")
    assert len(names) > 500
    assert any(name.endswith("/dataclasses.py") for name in names)
    assert not [name for name in names if "site-packages" in name or "__pycache__" in name]


class Rows:
    """As much of a `datasets.Dataset` as a source asks for."""

    column_names = ("id", "body")
    cache_files = ()

    def select_columns(self, names):
        assert names == ["body"]
        return self

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def iter(self, batch_size):
        yield pa.table({"body": ["one", None]})
        yield pa.table({"body": ["two"]})


@pytest.fixture
def datasets(monkeypatch):
    """Stands for the library: knows one data set."""

    def load_dataset(name, config, split):
        if name != "some/set":
            raise ConnectionError("Couldn't reach\nthe Hub")
        return Rows()

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_a_hugging_face_data_set(datasets):
    report = Report()
    source = open_source(HuggingFace(name="some/set", text_column="body"))
    assert list(source.documents(report)) == [b"one", b"two"]
    assert report.skipped["not a string"].first == "some/set/train, row 1"


def test_a_hugging_face_data_set_as_rows(monkeypatch, tmp_path):
    class Wide(Rows):
        column_names = ("id", "body", "date", "extra")
        cache_files = ({"filename": str(tmp_path / "rows.arrow")},)

        def select_columns(self, names):
            assert names == ["body", "id", "date"]
            return self

        def iter(self, batch_size):
            yield pa.table({"body": ["one", None, "three"], "id": [7, 8, None], "date": ["a", "b", None]})

    (tmp_path / "rows.arrow").write_bytes(b"as it was")
    known = types.SimpleNamespace(load_dataset=lambda name, config, split: Wide())
    monkeypatch.setitem(sys.modules, "datasets", known)
    corpus = HuggingFace(name="some/set", text_column="body")
    pipeline = Pipeline(origins=(Origin(corpus=corpus, columns=("date", "absent"), name="hf"),))
    built = build(pipeline, tmp_path / "out")
    assert [row for shard in built.shards for row in read_shard(shard.path)] == [
        {"id": 7, "text": "one", "date": "a", "source": "hf"},
        {"id": "some/set/train, row 2", "text": "three", "date": None, "source": "hf"},
    ]
    assert built.passed[0].ledger.dropped["not a string"].rows == 1
    assert build(pipeline, tmp_path / "out").passed[0].made == 0
    (tmp_path / "rows.arrow").write_bytes(b"changed")
    assert build(pipeline, tmp_path / "out").passed[0].made == 1


def test_a_hugging_face_column_that_is_not_there(datasets):
    with pytest.raises(UserError, match=r"some/set/train has no text column 'bodi'; did you mean 'body'"):
        open_source(HuggingFace(name="some/set", text_column="bodi"))


def test_a_hugging_face_data_set_out_of_reach(datasets):
    with pytest.raises(UserError, match="cannot load the Hugging Face data set 'other': Couldn't reach the Hub"):
        open_source(HuggingFace(name="other"))


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'nachim\[hf\]'"):
        open_source(HuggingFace(name="some/set"))


def test_a_corpus_that_nothing_reads():
    with pytest.raises(TypeError, match="no reader for Corpus"):
        open_source(Corpus())
