"""A checkpoint is whole or not there; what is broken is named."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nachim.spec import UserError
from nachim.train import checkpoint
from nachim.train.checkpoint import Progress, latest, load, path_at, prune, save
from nachim.train.guard import Guard
from nachim.train.step import Stepper
from tests.train.tiny import ALWAYS, Kill, differing, folders, fresh, go, kill_at, loss, rows, tiny_run, weights


def shorten(path: Path) -> None:
    """Keep the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def data_file(folder: Path) -> Path:
    """The file of optimizer state in a checkpoint."""
    (found,) = (folder / "state").glob("*.distcp")
    return found


DAMAGE = {
    "half the weights": lambda folder: shorten(folder / "weights.safetensors"),
    "empty weights": lambda folder: os.truncate(folder / "weights.safetensors", 0),
    "no weights": lambda folder: (folder / "weights.safetensors").unlink(),
    "half the optimizer": lambda folder: shorten(data_file(folder)),
    "no optimizer": lambda folder: data_file(folder).unlink(),
    "half the index": lambda folder: shorten(folder / "state" / ".metadata"),
    "no index": lambda folder: (folder / "state" / ".metadata").unlink(),
    "an index of noise": lambda folder: (folder / "state" / ".metadata").write_bytes(b"noise" * 9),
}


def stepper_after(steps: int, **shape: int) -> Stepper:
    """A tiny run's stepper that has taken `steps` steps."""
    run = tiny_run(8, **shape)
    made = Stepper(run, fresh(run), loss)
    for step in range(steps):
        made.take(step, torch.arange(36).view(4, 9), Guard(1.0))
    return made


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write a file beyond `size` bytes, as it would on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_broken_checkpoint_is_named(tmp_path, damage):
    folder = save(tmp_path, stepper_after(1), Progress(1), frozenset())
    damage(folder)
    with pytest.raises(UserError) as caught:
        load(folder, stepper_after(0))
    assert str(caught.value).startswith(f"cannot resume from {folder}: ")
    assert str(caught.value).endswith("; remove that folder to start from an older one")
    assert "\n" not in str(caught.value)


def test_a_run_whose_checkpoint_is_broken_says_so_and_goes_on_without_it(tmp_path):
    run = tiny_run(4)
    with pytest.raises(Kill):
        go(run, tmp_path / "broken", checkpoint_seconds=ALWAYS, keep=frozenset({1}), on_step=kill_at(3))
    newest = latest(tmp_path / "broken" / "checkpoint")
    shorten(newest / "weights.safetensors")
    with pytest.raises(UserError, match=r"cannot resume from .*step-000000002"):
        go(run, tmp_path / "broken")
    for path in sorted(newest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    newest.rmdir()
    go(run, tmp_path / "broken")
    go(run, tmp_path / "whole")
    assert not differing(weights(tmp_path / "broken"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path):
    folder = save(tmp_path, stepper_after(1, d_model=32), Progress(1), frozenset())
    with pytest.raises(UserError, match="cannot resume from"):
        load(folder, stepper_after(0))


def test_a_checkpoint_holds_all_that_the_next_step_needs(tmp_path):
    one, other = stepper_after(3), stepper_after(0)
    folder = save(tmp_path, one, Progress(3, 1.5), frozenset())
    assert load(folder, other) == Progress(3, 1.5)
    for stepper in (one, other):
        stepper.take(3, torch.arange(36).view(4, 9), Guard(1.0))
    assert not differing(one.masters.state(), other.masters.state())


def test_loading_undoes_whatever_the_stepper_had_done(tmp_path):
    folder = save(tmp_path, stepper_after(2), Progress(2), frozenset())
    used = stepper_after(5)
    load(folder, used)
    assert not differing(used.masters.state(), stepper_after(2).masters.state())


def test_the_newest_whole_checkpoint_is_found_and_half_written_ones_are_not(tmp_path):
    assert latest(tmp_path / "nowhere") is None
    for step in (2, 10, 9):
        path_at(tmp_path, step).mkdir()
    (tmp_path / ".step-000000011.99.tmp").mkdir()
    (tmp_path / "notes.txt").touch()
    assert latest(tmp_path) == path_at(tmp_path, 10)
    prune(tmp_path, frozenset({2, 10}))
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "step-000000002", "step-000000010"]


def test_what_a_killed_process_left_half_written_is_ignored_and_removed(tmp_path):
    run = tiny_run(4)
    with pytest.raises(Kill):
        go(run, tmp_path / "killed", checkpoint_seconds=ALWAYS, on_step=kill_at(3))
    root = tmp_path / "killed" / "checkpoint"
    for left in (".step-000000003.99.tmp", f".step-000000004.{os.getpid()}.tmp"):  # numbers of processes come back
        (root / left / "state").mkdir(parents=True)
        (root / left / "weights.safetensors").write_bytes(b"half")
    go(run, tmp_path / "killed")
    go(run, tmp_path / "whole")
    assert folders(tmp_path / "killed") == ["step-000000004"]
    assert not differing(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("size", [10_000, 60_000], ids=["weights", "optimizer"])
def test_a_disk_without_room_leaves_the_last_good_checkpoint(tmp_path, size):
    good = save(tmp_path, stepper_after(1), Progress(1), frozenset())
    assert (good / "weights.safetensors").stat().st_size < 60_000 < data_file(good).stat().st_size
    further = stepper_after(2)
    with files_of_at_most(size), pytest.raises(UserError, match=r"step-000000002.*disk"):
        save(tmp_path, further, Progress(2), frozenset())
    assert os.listdir(tmp_path) == [good.name]
    load(good, further)
    assert not differing(further.masters.state(), stepper_after(1).masters.state())


@pytest.mark.parametrize(("code", "said"), [(errno.ENOSPC, "disk full"), (errno.EROFS, "choose a writable folder")])
def test_a_folder_that_refuses_is_named(tmp_path, monkeypatch, code, said):
    def refuse(*paths: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(checkpoint.os, "replace", refuse)
    with pytest.raises(UserError, match=said):
        save(tmp_path, stepper_after(1), Progress(1), frozenset())
    assert os.listdir(tmp_path) == []
