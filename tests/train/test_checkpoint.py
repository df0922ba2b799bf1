"""A checkpoint is whole or not there; what is broken is named."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from nachim.spec import Keep, Run, UserError
from nachim.train import checkpoint, manifest
from nachim.train.checkpoint import Progress, latest, load, path_at, prune, save
from nachim.train.guard import Guard
from nachim.train.loop import Stage, train
from nachim.train.step import Stepper
from tests.train.tiny import (
    ALWAYS,
    NEVER,
    Kill,
    batches,
    differing,
    folders,
    fresh,
    go,
    kill_at,
    loss,
    rows,
    tiny_run,
    weights,
)


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


def bare(root: Path) -> None:
    """Make checkpoints what they were before they had manifests and metrics of their own."""
    for path in (*root.glob("*/manifest.json"), *root.glob("*/metrics.parquet")):
        path.unlink()


def killed(out: Path, step: int) -> tuple[Run, Path]:
    """A run of four steps that was killed at `step` in `out`, a checkpoint after every one before; their folder."""
    run = tiny_run(4)
    with pytest.raises(Kill):
        go(run, out, checkpoint_seconds=ALWAYS, on_step=kill_at(step))
    return run, out / "checkpoint"


def test_a_checkpoint_without_a_manifest_still_resumes(tmp_path):
    run, root = killed(tmp_path / "old", 3)
    bare(root)
    go(run, tmp_path / "old")
    go(run, tmp_path / "whole")
    assert not differing(weights(tmp_path / "old"), weights(tmp_path / "whole"))
    assert rows(tmp_path / "old") == rows(tmp_path / "whole")


def test_a_broken_checkpoint_without_a_manifest_stops_the_run(tmp_path):
    run, root = killed(tmp_path, 3)
    bare(root)
    shorten(latest(root) / "weights.safetensors")
    with pytest.raises(UserError, match=r"cannot resume from .*step-000000002"):
        go(run, tmp_path)


def test_only_when_every_checkpoint_is_damaged_is_it_an_error_and_nothing_is_removed(tmp_path):
    run, root = killed(tmp_path / "broken", 4)
    before = folders(tmp_path / "broken")
    for path in root.glob("step-*/weights.safetensors"):
        shorten(path)
    with pytest.raises(UserError) as caught:
        go(run, tmp_path / "broken")
    assert folders(tmp_path / "broken") == before == ["step-000000002", "step-000000003"]
    for words in ("no checkpoint under", "step-000000003: weights.safetensors has", "remove that folder"):
        assert words in str(caught.value)
    shutil.rmtree(root)
    go(run, tmp_path / "broken")
    go(run, tmp_path / "whole")
    assert not differing(weights(tmp_path / "broken"), weights(tmp_path / "whole"))


def test_checkpoints_of_another_run_than_run_json_are_refused(tmp_path):
    killed(tmp_path, 3)
    other = tiny_run(4, lr=0.5)
    other.save(tmp_path / "run.json")
    with pytest.raises(UserError, match=r"holds checkpoints of another run than its run\.json"):
        go(other, tmp_path)


def test_a_start_that_is_damaged_is_refused(tmp_path):
    run, root = killed(tmp_path / "short", 3)
    shorten(latest(root) / "weights.safetensors")
    with pytest.raises(UserError, match=r"cannot start from .*step-000000002: weights.safetensors has"):
        go(run, tmp_path / "long", start=latest(root))


def test_the_manifest_sees_every_bit_that_changes(tmp_path):
    folder = save(tmp_path, stepper_after(1), Progress(1), frozenset())
    manifest.check(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 40):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << int(bit % 8)
            path.write_bytes(changed)
            with pytest.raises(manifest.Damaged):
                manifest.check(folder)
        path.write_bytes(whole)
    manifest.check(folder)


def test_a_snapshot_does_not_feel_the_steps_that_follow(tmp_path):
    stepper = stepper_after(2)
    taken = checkpoint.snapshot(stepper, progress := Progress(2))
    stepper.take(2, torch.arange(36).view(4, 9), Guard(1.0))
    progress.step = 3
    again = stepper_after(0)
    assert load(checkpoint.write(tmp_path, taken), again) == Progress(2)
    again.take(2, torch.arange(36).view(4, 9), Guard(1.0))
    assert not differing(again.masters.state(), stepper.masters.state())


def test_what_cannot_be_written_comes_up_at_the_next_step_and_the_run_goes_on_later(tmp_path):
    run, seen = tiny_run(6), []
    with pytest.raises(UserError, match=r"cannot write .*step-00000000[12].*disk"), files_of_at_most(20_000):
        go(run, tmp_path / "full", checkpoint_seconds=ALWAYS, on_step=lambda step, _: seen.append(step))
    assert seen[-1] <= 2
    go(run, tmp_path / "full")
    go(run, tmp_path / "whole")
    assert not differing(weights(tmp_path / "full"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("keep", "left"),
    [(Keep(), [8]), (Keep(last=3), [6, 7, 8]), (Keep(every=3), [3, 6, 8]), (Keep(best=True), [4, 8])],
    ids=["default", "last", "every", "best"],
)
def test_the_recipe_says_which_checkpoints_stay(tmp_path, keep, left):
    told = iter((3.0, 2.0, 2.5, 2.2))
    run = tiny_run(8, times=4, keep=keep)
    stage = Stage(checkpoint_seconds=ALWAYS)
    result = train(run, fresh(run), batches, loss, lambda model: {"loss": next(told)}, tmp_path, stage)
    assert checkpoint.steps(tmp_path / "checkpoint") == left
    assert result.get("best_step") == (4 if keep.best else None)


def test_what_the_recipe_keeps_is_written_whatever_the_clock_says(tmp_path):
    told = iter((3.0, 2.0, 2.5, 2.2))
    run = tiny_run(8, times=4, keep=Keep(every=3, best=True))
    train(run, fresh(run), batches, loss, lambda model: {"loss": next(told)}, tmp_path, Stage(checkpoint_seconds=NEVER))
    assert checkpoint.steps(tmp_path / "checkpoint") == [3, 4, 6, 8]


def test_one_more_than_the_recipe_keeps_stays_while_the_run_trains(tmp_path):
    _, root = killed(tmp_path, 4)
    assert checkpoint.steps(root) == [2, 3]


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
