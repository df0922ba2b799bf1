"""The cache: what decides the tokens, what is written, and what happens when something breaks."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from nachim.data import prepare as module
from nachim.data.pack import Batches
from nachim.data.prepare import prepare
from nachim.spec.data import BPE, Data, Files
from nachim.spec.error import UserError


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def texts(prepared, split):
    tokens, starts = getattr(prepared, split), getattr(prepared, f"{split}_documents")
    pieces = np.split(tokens, starts[1:])
    assert all(piece[-1] == 0 for piece in pieces)
    return [prepared.tokenizer.decode(piece[:-1].tolist()) for piece in pieces]


def with_corpus(data, **fields):
    return dataclasses.replace(data, corpus=dataclasses.replace(data.corpus, **fields))


def finished(cache):
    return [path for path in cache.iterdir() if path.name != "known"] if cache.exists() else []


def test_each_document_stands_in_one_split_and_comes_back_whole(prepared, folder):
    train, validation = texts(prepared, "train"), texts(prepared, "validation")
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(p.read_text(encoding="utf-8") for p in folder.iterdir())
    assert 4000 <= prepared.validation_bytes <= 5000


def test_bytes_and_tokens_are_exact(prepared):
    for split in ("train", "validation"):
        tokens, counts = getattr(prepared, split), prepared.manifest[split]
        raw = sum(len(text.encode()) for text in texts(prepared, split))
        assert prepared.bytes_per_token[tokens].sum() == raw == counts["bytes"]
        assert len(tokens) == counts["tokens"]
        assert (tokens == 0).sum() == counts["documents"]
    assert prepared.unique_tokens == len(prepared.train)
    assert prepared.train.dtype == np.uint16


def test_the_same_corpus_comes_to_the_same_bytes(prepared, data, folder, tmp_path):
    again = prepare(data, tmp_path / "elsewhere")
    assert again.fingerprint == prepared.fingerprint
    assert contents(again.folder) == contents(prepared.folder)
    moved = tmp_path / "moved"
    moved.mkdir()
    for i, path in enumerate(sorted(folder.iterdir(), reverse=True)):
        shutil.copy(path, moved / f"{i:03}.md")
    assert prepare(with_corpus(data, path=str(moved)), tmp_path / "third").fingerprint == prepared.fingerprint


def test_whatever_decides_the_tokens_changes_the_fingerprint(prepared, data, folder, tmp_path):
    cache = tmp_path / "cache"
    others = [
        with_corpus(data, validation_bytes=3000),
        with_corpus(data, near_duplicates=True),
        dataclasses.replace(data, tokenizer=BPE(vocab_size=301)),
    ]
    same = [dataclasses.replace(data, seed=9), dataclasses.replace(data, seq_len=8)]
    assert {prepare(d, cache).fingerprint for d in same} == {prepared.fingerprint}
    fingerprints = {prepare(d, cache).fingerprint for d in others}
    (folder / "000.txt").write_text("something else")
    assert len({prepared.fingerprint, prepare(data, cache).fingerprint, *fingerprints}) == 5


def test_a_warm_cache_is_not_read_again(prepared, data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "spool", None)
    assert prepare(data, tmp_path / "cache").manifest == prepared.manifest


def test_what_was_lost_is_told_for_each_corpus(data, folder, text, tmp_path):
    first = prepare(data, tmp_path / "cache")
    assert first.notes() == ["0.00% of the validation bytes stand in documents near to train"]
    (folder / "copy.txt").write_text(text(5, 45), encoding="utf-8")
    (folder / "empty.txt").write_text("\n")
    second = prepare(data, tmp_path / "cache")
    assert second.fingerprint == first.fingerprint
    assert second.notes()[:2] == [
        "1 left out: empty (first: empty.txt)",
        f"1 left out: exact duplicates ({len(text(5, 45).encode())} bytes)",
    ]
    assert prepare(data, tmp_path / "cache").notes() == second.notes()


def test_near_duplicates_are_left_out_or_measured(data, folder, text, tmp_path):
    for i in range(0, 200, 2):
        (folder / f"near{i}.txt").write_text(text(i, 40 + i % 41) + "with another end", encoding="utf-8")
    without = prepare(data, tmp_path / "cache")
    assert without.manifest["near_duplicates"]["documents"] == 100
    assert without.manifest["leakage"] == 0
    assert "100 left out: near duplicates" in without.notes()[0]
    kept = prepare(with_corpus(data, near_duplicates=True), tmp_path / "cache")
    assert kept.manifest["near_duplicates"] == {"documents": 0, "bytes": 0}
    assert kept.manifest["leakage"] > 0.3


def test_other_tokens_than_the_run_insists_on(prepared, data, tmp_path):
    assert prepare(dataclasses.replace(data, fingerprint_of_tokens=prepared.fingerprint), tmp_path / "cache")
    wrong = dataclasses.replace(data, fingerprint_of_tokens="f00")
    for cache in (tmp_path / "cache", tmp_path / "cold"):
        with pytest.raises(UserError, match=f"f00.*{prepared.fingerprint}"):
            prepare(wrong, cache)
    assert finished(tmp_path / "cold") == []


def truncate(folder):
    with open(folder / "train.bin", "r+b") as file:
        file.truncate(100)


def remove(folder):
    (folder / "tokenizer.json").unlink()


def garble(folder):
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "said"), [(truncate, "train.bin has 100"), (remove, "tokenizer.json is missing"), (garble, "is broken")]
)
def test_a_damaged_cache_is_made_again(prepared, data, tmp_path, harm, said):
    before = contents(prepared.folder)
    harm(prepared.folder)
    with pytest.warns(UserWarning, match=said):
        again = prepare(data, tmp_path / "cache")
    assert contents(again.folder) == before
    assert finished(tmp_path / "cache") == [again.folder]


def test_a_broken_note_of_what_is_known_is_not_believed(prepared, data, tmp_path):
    (note,) = (tmp_path / "cache" / "known").iterdir()
    for text in ("", "[]", "{}"):
        note.write_text(text)
        assert prepare(data, tmp_path / "cache").manifest == prepared.manifest
    assert json.loads(note.read_text())["fingerprint"] == prepared.fingerprint


@pytest.mark.parametrize("file", ["documents", "train.bin", "validation.documents.npy", "manifest.json"])
def test_a_full_disk(data, tmp_path, monkeypatch, file):
    fsync = os.fsync

    def full(descriptor):
        if f".{file}." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"disk full while writing .*{file}"):
        prepare(data, tmp_path / "cache")
    assert finished(tmp_path / "cache") == []
    monkeypatch.undo()
    prepare(data, tmp_path / "cache")


def test_a_cache_that_cannot_be_written(data, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        prepare(data, tmp_path / "cache")


KILLED = """
import os, signal, sys
from pathlib import Path
from nachim.data.prepare import prepare
from nachim.spec.data import Data
kill = lambda stage, done: stage == sys.argv[3] and os.kill(os.getpid(), signal.SIGKILL)
prepare(Data.load(sys.argv[1]), Path(sys.argv[2]), kill)
"""


@pytest.mark.parametrize("stage", ["tokenizer", "leakage"])
def test_a_killed_process_leaves_nothing_that_is_believed(data, tmp_path, stage):
    cache, spec = tmp_path / "cache", tmp_path / "data.json"
    data.save(spec)
    done = subprocess.run([sys.executable, "-c", KILLED, spec, cache, stage], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name.startswith(".prepare-") for path in cache.iterdir()] == [True]
    with warnings.catch_warnings(action="error"):
        prepared = prepare(data, cache)
    assert finished(cache) == [prepared.folder]


def test_a_process_that_was_faster_is_believed(data, tmp_path):
    cache, faster = tmp_path / "cache", []

    def other_process(stage, done):
        if stage == "leakage" and not faster:
            faster.append(None)
            faster.append(prepare(data, cache))

    slower = prepare(data, cache, other_process)
    assert slower.fingerprint == faster[1].fingerprint
    assert finished(cache) == [slower.folder]


def test_progress_is_told_by_stage(data, tmp_path):
    told = []
    prepare(data, tmp_path / "cache", lambda stage, done: told.append((stage, done)))
    stages = ["read", "deduplicate", "tokenizer", "encode train", "encode validation", "leakage"]
    assert list(dict.fromkeys(stage for stage, _ in told)) == stages
    assert all(0 <= done <= 1 for _, done in told)
    assert {stage for stage, done in told if done == 1} == set(stages)


def test_a_natural_text(shared_data: Path, tmp_path):
    path = shared_data / "text" / "tinyshakespeare.txt"
    corpus = Files(path=str(path), validation_bytes=100_000)
    data = Data(corpus=corpus, tokenizer=BPE(vocab_size=512), seq_len=128)
    prepared = prepare(data, tmp_path)
    lost = prepared.manifest["near_duplicates"]["bytes"]
    assert prepared.train_bytes + prepared.validation_bytes + lost == path.stat().st_size
    assert Batches(prepared, data).batch(10**12, 2).shape == (2, 129)
    with pytest.raises(UserError, match=r"holds 1,115,394 bytes .*set it to at most 223078"):
        prepare(with_corpus(data, validation_bytes=2_000_000), tmp_path)
