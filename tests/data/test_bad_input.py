"""Whatever is wrong with input is counted or one sentence, and no row is lost on the way."""

from __future__ import annotations

import errno
import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nachim.data import read, shards
from nachim.data.ingest import Origin
from nachim.data.pipeline import Pipeline, build
from nachim.data.shards import read_shard
from nachim.spec import Files, UserError


@pytest.fixture
def went(tmp_path):
    """Reads a folder: how many rows there are, and how many were lost for each reason."""

    def made(columns=(), path=None):
        place = path or str(tmp_path / "in")
        origin = Origin(corpus=Files(path=place), columns=columns)
        built = build(Pipeline(origins=(origin,), shard_bytes=5000), tmp_path / "out")
        ledger = built.passed[0].ledger
        rows = [row for shard in built.shards for row in read_shard(shard.path)]
        assert len(rows) == ledger.kept.rows == ledger.came.rows - ledger.gone.rows
        return rows, {reason: count.rows for reason, count in ledger.dropped.items()}

    return made


@pytest.fixture
def folder(tmp_path):
    """A folder with one good document."""
    place = tmp_path / "in"
    place.mkdir()
    (place / "good.txt").write_text("a good document")
    return place


def test_lines_that_are_too_long_are_passed_over_in_pieces(folder, went, monkeypatch):
    monkeypatch.setattr(read, "LONGEST", 100)
    long = [{"text": "x" * 300}, {"text": "short"}, {"text": "y" * 5000}]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    (folder / "b.jsonl").write_text('{"text": "' + "z" * 300)
    (folder / "c.txt").write_text("w" * 101)
    rows, lost = went()
    assert [row["text"] for row in rows] == ["short", "a good document"]
    assert lost == {read.TOO_LONG: 4}


def test_a_single_text_without_line_ends_is_bounded_too(tmp_path, went, monkeypatch):
    monkeypatch.setattr(read, "LONGEST", 10_000)
    (tmp_path / "in").write_text("v" * 20_000 + "\n" + "word " * 10 + "\n")
    rows, lost = went()
    assert [row["text"].strip() for row in rows] == [("word " * 10).strip()]
    assert lost == {read.TOO_LONG: 1}


def test_encodings_nul_bytes_and_empty_files(folder, went):
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "wide.txt").write_bytes("wide".encode("utf-16-le"))
    (folder / "nothing.txt").write_bytes(b"")
    (folder / "n.jsonl").write_text('{"text": "a\\u0000b"}\n{"text": "half \\ud800 pair"}\n{"text": "fine"}\n')
    rows, lost = went()
    assert sorted(row["text"] for row in rows) == ["a good document", "fine"]
    assert lost == {"not UTF-8": 2, "holds NUL bytes": 2, "empty": 1}


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.jsonl.zst", "t.parquet"])
def test_files_that_were_cut_short(folder, went, name):
    texts = [f"document {i} with words of its own {i * 7919}" for i in range(3000)]
    raw = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": texts}), folder / name)
        whole = (folder / name).read_bytes()
    else:
        whole = gzip.compress(raw) if name.endswith("gz") else pa.Codec("zstd").compress(raw, asbytes=True)
    (folder / name).write_bytes(whole[: len(whole) // 2])
    rows, lost = went()
    assert lost == {"unreadable file": 1}
    assert "a good document" in [row["text"] for row in rows]


def test_columns_of_a_wrong_type(folder, went):
    pq.write_table(pa.table({"text": [1, 2, 3]}), folder / "numbers.parquet")
    pq.write_table(
        pa.table({"text": ["one"], "id": [7], "nest": [{"a": 1}], "nan": [float("nan")]}), folder / "o.parquet"
    )
    (folder / "list.jsonl").write_text('{"text": ["a"]}\n{"text": null}\n')
    rows, lost = went(columns=("nest", "nan"))
    assert lost == {"not a string": 5}
    (row,) = [row for row in rows if row["text"] == "one"]
    assert row == {"id": 7, "text": "one", "nest": "{'a': 1}", "nan": None, "source": "files"}


def test_links_that_go_round_and_links_that_lead_nowhere(folder, went):
    (folder / "sub").mkdir()
    (folder / "sub" / "deep.txt").write_text("deep down")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder / "sub")
    (folder / "round.txt").symlink_to(folder / "round.txt")
    (folder / "nowhere.txt").symlink_to(folder / "gone.txt")
    rows, lost = went()
    assert sorted(row["text"] for row in rows) == ["a good document", "deep down"]
    assert lost == {"unreadable file": 2}


def test_files_elsewhere(went, tmp_path):
    upath = pytest.importorskip("upath")
    place = upath.UPath("memory://test_bad_input/in")
    for name, text in (("b.txt", "second"), ("a/x.jsonl", '{"id": 5, "text": "first"}\n'), (".hidden/c.txt", "no")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(text.encode())
    pq.write_table(pa.table({"text": ["third"]}), (place / "c.parquet").open("wb"))
    (place / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fourth"}\n'))
    rows, lost = went(path=str(place))
    assert [(row["id"], row["text"]) for row in rows] == [
        (5, "first"), ("b.txt", "second"), ("c.parquet, row 0", "third"), ("d.jsonl.gz, line 1", "fourth")
    ]  # fmt: skip
    assert lost == {}
    (place / "b.txt").write_bytes(b"changed")
    assert "changed" in [row["text"] for row in went(path=str(place))[0]]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "here.txt").write_text("as a URL")
    assert went(path=f"file://{tmp_path}/in/here.txt")[0][0]["text"] == "as a URL"


@pytest.mark.parametrize(
    ("url", "said"),
    [("zzz://somewhere/x", "cannot open zzz://somewhere/x: "), ("memory://nowhere/at/all", "no such file or folder")],
)
def test_nothing_elsewhere(went, url, said):
    pytest.importorskip("upath")
    with pytest.raises(UserError, match=said):
        went(path=url)


def test_no_space_left(folder, went, monkeypatch, tmp_path):
    real = shards.write_text

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match=r"disk full while writing .*: free some space and run again"):
        went()
    monkeypatch.undo()
    assert not list(tmp_path.glob("out/**/*.tmp"))
    assert not (tmp_path / "out" / "ledger.json").exists()
    assert shards.write_text is real
    assert len(went()[0]) == 1
