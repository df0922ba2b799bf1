"""A write leaves the old file or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from nachim.spec import UserError
from nachim.spec.disk import locked, new_folder, read_json, replacing, write_text

HOLD = """
import sys
from pathlib import Path
from nachim.spec.disk import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Halt(Exception):
    """Stands for whatever can go wrong while a file is being written."""


def test_a_finished_write_replaces_the_file(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "old")
    write_text(str(path), "새것")
    assert path.read_text(encoding="utf-8") == "새것"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [Halt(), KeyboardInterrupt(), OSError(errno.EIO, "broken")], ids=repr)
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        raise error
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, code):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UserError, match=rf"disk full while writing {path}: free some space"), replacing(path) as new:
        new.write_text("half", encoding="utf-8")
        raise OSError(code, os.strerror(code))
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_disk_that_fills_up_on_the_way_to_it_is_noticed(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="disk full"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_refuses_is_named(tmp_path, monkeypatch, code):
    def refuse(*paths: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=rf"cannot write {tmp_path / 'a.txt'}: .*; choose a writable folder"):
        write_text(tmp_path / "a.txt", "new")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="choose a writable folder"):
            write_text(tmp_path / "a.txt", "new")
        with pytest.raises(UserError, match="choose a writable folder"), locked(tmp_path / "lock"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_file_where_a_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("old", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "new")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"


def test_a_lock_is_let_go_of_at_the_end(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "deep" / "lock", patience=0):
            pass
    with pytest.raises(Halt), locked(tmp_path / "lock", patience=0):
        raise Halt
    with locked(tmp_path / "lock", patience=0):
        pass


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    lock = tmp_path / "lock"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(UserError, match="in use by another process"), locked(lock, patience=0.1):
                pass
        finally:
            holder.kill()
    with locked(lock, patience=10):
        pass


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path):
    path = tmp_path / "a.txt"
    code = f"import os, signal; from nachim.spec.disk import replacing\nwith replacing({str(path)!r}) as t:\n" + (
        "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = os.listdir(tmp_path)
    mine = tmp_path / f".a.txt.{os.getppid()}.tmp"  # of a process that lives
    mine.write_text("still being written")
    write_text(path, "whole")
    assert left.endswith(".tmp") and sorted(os.listdir(tmp_path)) == sorted([mine.name, "a.txt"])


def test_broken_json_is_said_with_what_to_do(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"loss": ')
    with pytest.raises(UserError, match=rf"{path} cannot be read \(.*\): remove it"):
        read_json(path)


def test_a_folder_appears_whole(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        write_text(folder / "inner" / "a.txt", "whole")
        assert not any((tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "inner" / "a.txt").read_text() == "whole"
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(UserError, match="is there already"), new_folder(tmp_path / "out"):
        pass


def test_a_folder_that_does_not_become_whole_does_not_appear(tmp_path):
    with pytest.raises(Halt), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("")
        raise Halt
    assert not list(tmp_path.iterdir())
