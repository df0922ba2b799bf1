"""Every way in which a file can fail to be documents is counted by kind, with the place of the first."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nachim.data.read import Report
from nachim.data.source import open_source
from nachim.spec.data import Files
from nachim.spec.error import UserError


def read(path, column="text"):
    report = Report()
    documents = list(open_source(Files(path=str(path), text_column=column)).documents(report))
    return documents, report


def lost(report):
    return {reason: (skipped.count, skipped.first) for reason, skipped in report.skipped.items()}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(raw):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstd)])
def test_json_lines_plain_and_compressed(tmp_path, suffix, pack):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(lines({"text": "one\r\n"}, {"text": "두 é"})))
    documents, report = read(path)
    assert documents == [b"one\r\n", "두 é".encode()]
    assert (report.documents, report.bytes, report.skipped) == (2, 5 + 6, {})


def test_broken_lines_are_counted_by_kind(tmp_path):
    path = tmp_path / "a.jsonl"
    bad = [b'{"text": "cut', b'{"text": "\xff"}', b"[1]", b'{"other": 1}', b'{"text": 7}', b'{"text": null}']
    bad += [b'{"text": " "}', rb'{"text": "\ud800"}', b"[" * 100_000, b""]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([b'{"text": "good"}', *bad, b'{"text": "too"}']))
    documents, report = read(path)
    assert documents == [b"good", b"too"]
    assert lost(report) == {
        "broken JSON line": (2, "a.jsonl, line 2"),
        "not UTF-8": (2, "a.jsonl, line 3"),
        "JSON line that is not an object": (1, "a.jsonl, line 4"),
        "JSON line without the text column": (1, "a.jsonl, line 5"),
        "not a string": (2, "a.jsonl, line 6"),
        "empty": (1, "a.jsonl, line 8"),
    }
    assert "2 left out: broken JSON line (first: a.jsonl, line 2)" in report.notes()


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)])
def test_a_truncated_archive_is_counted_and_the_next_file_is_read(tmp_path, name, pack):
    many = lines(*({"text": f"document {i} {hash(i) % 9973}"} for i in range(20_000)))
    packed = pack(many)
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.jsonl").write_bytes(lines({"text": "after"}))
    documents, report = read(tmp_path)
    assert documents[-1] == b"after"
    assert report.skipped["unreadable file"].count == 1
    assert report.skipped["unreadable file"].first.startswith(f"{name}, after line ")


def test_a_column_that_no_line_has(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"txet": "a", "id": 1}))
    with pytest.raises(UserError, match=r"no line of .*'text'; did you mean 'txet'"):
        read(path)


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    bad = pa.array([b"one", b"\xff", b"", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"body": bad}), path)
    documents, report = read(path, "body")
    assert documents == [b"one"]
    assert lost(report) == {
        "not UTF-8": (1, "a.parquet, row 1"),
        "empty": (1, "a.parquet, row 2"),
        "not a string": (1, "a.parquet, row 3"),
    }
    with pytest.raises(UserError, match="no text column 'bdoy'; did you mean 'body'"):
        read(path, "bdoy")


def test_a_damaged_parquet_file_is_counted(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing of the kind")
    (tmp_path / "b.txt").write_text("text")
    documents, report = read(tmp_path)
    assert documents == [b"text"]
    assert report.skipped["unreadable file"].first.startswith("a.parquet: ")


def test_a_folder_is_read_by_relative_path_without_what_is_hidden(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b/c.md", ".git/config", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "c.bin").write_bytes(b"\xff\x00")
    documents, report = read(tmp_path)
    assert documents == [b"a/b/c.md", b"a/z.txt", b"b.txt"]
    assert lost(report) == {"not UTF-8": (1, "c.bin")}


def test_a_single_text_is_cut_at_blank_lines_or_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {i}\n" + "\n" * (i % 7 == 0) for i in range(5000)) + "x" * 50_000)
    documents, _ = read(path)
    assert b"".join(documents) == path.read_bytes()
    assert [document.endswith(b"\n\n") for document in documents] == [True] * 6 + [False]


def test_a_single_text_that_is_not_utf8_loses_only_the_pieces_that_are_not(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good text\n" * 1000 + b"\xff\n" + b"good text\n" * 1000)
    documents, report = read(path)
    assert len(documents) == 2
    assert lost(report) == {"not UTF-8": (1, "a.txt, byte 8200")}


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text(" \n")])
def test_nothing_to_read(tmp_path, make):
    path = tmp_path / "corpus"
    make(path)
    with pytest.raises(UserError, match=r"no such file or folder|no file in|no document in .*1 left out: empty"):
        read(path)
