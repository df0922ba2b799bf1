"""Checkpoints: safetensors for the weights, torch's distributed format for the optimizer, renamed in whole."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException

from nachim.model.weights import CHECKPOINT as CHECKPOINT
from nachim.model.weights import PREFIX, WEIGHTS, path_at
from nachim.model.weights import latest as latest
from nachim.spec import UserError
from nachim.spec.disk import full_disk_is_an_error
from nachim.train import manifest, metrics
from nachim.train.manifest import Damaged
from nachim.train.step import Stepper

# What the two libraries raise when a file cannot be written or read: no OSError, and torch's is not even an Exception.
REFUSED = (SafetensorError, CheckpointException, pa.ArrowException)
# torch says that one process saves or loads: so it does. By message: a thread cannot suspend warnings for itself alone.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


@dataclass
class Progress:
    """Where a run stands: steps taken, seconds spent on them over all its sittings, and the threads it began with.

    A resumed run takes as many threads as it began with, for some CPUs' matrix kernels add in another order on others.
    `passed` sequences were passed over in `rollbacks` returns to an older checkpoint.
    """

    step: int = 0
    seconds: float = 0.0
    threads: int = 0
    passed: int = 0
    rollbacks: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A run's state in tensors of its own: the steps that follow do not reach it."""

    weights: dict[str, Tensor]
    state: dict[str, Any]
    run: str
    rows: pa.Table | None

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.state["progress"]["step"]


def snapshot(stepper: Stepper, progress: Progress, rows: pa.Table | None = None) -> Snapshot:
    """Copy the state of a run, with its metrics as they stand. This is all that a run waits for."""
    state = {"optimizer": stepper.optimizer.state_dict(), "progress": vars(progress)}
    return Snapshot(_copied(stepper.masters.state()), _copied(state), stepper.run.fingerprint, rows)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {name: _copied(held) for name, held in value.items()}
    return [_copied(held) for held in value] if isinstance(value, list) else value


def save(root: Path, stepper: Stepper, progress: Progress, keep: frozenset[int]) -> Path:
    """Write a checkpoint and then remove older ones whose step is not in `keep`. Raises UserError on a full disk."""
    final = write(root, snapshot(stepper, progress))
    prune(root, keep | {progress.step})
    return final


def write(root: Path, taken: Snapshot) -> Path:
    """Write `taken` as a checkpoint under `root`, whole or not at all. Raises UserError when the disk refuses."""
    final = path_at(root, taken.step)
    temporary = root / f".{final.name}.{os.getpid()}.tmp"
    with full_disk_is_an_error(final):
        try:
            if not final.exists():
                shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have had this number
                temporary.mkdir(parents=True)
                _fill(temporary, taken)
                os.replace(temporary, final)
                manifest.sync(root)
        except REFUSED as error:
            raise UserError(f"cannot write {final}: {_reason(error)}; is the disk full?") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def _fill(folder: Path, taken: Snapshot) -> None:
    save_file(taken.weights, folder / WEIGHTS)
    unsynced = FileSystemWriter(folder / "state", sync_files=False)  # all files are, with the manifest
    dcp.save(taken.state, storage_writer=unsynced, no_dist=True)
    if taken.rows is not None:
        metrics.write(taken.rows, folder / manifest.METRICS)
    manifest.seal(folder, taken.run)


def steps(root: Path) -> list[int]:
    """Steps of the checkpoints under `root`, in order."""
    return sorted(step_of(path) for path in root.glob(f"{PREFIX}*"))


def step_of(path: Path) -> int:
    """The step of a checkpoint folder."""
    return int(path.name.removeprefix(PREFIX))


def prune(root: Path, keep: frozenset[int]) -> None:
    """Remove every checkpoint under `root` whose step is not in `keep`, and what was left half-written or damaged."""
    for step in steps(root):
        if step not in keep:
            remove(path_at(root, step))
    for left in root.glob(f".{PREFIX}*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a checkpoint: out of sight first, so that a kill leaves all of it or none."""
    shutil.rmtree(_hide(path), ignore_errors=True)


def _hide(path: Path) -> Path:
    hidden = path.with_name(f".{path.name}.gone.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(path, hidden)
    return hidden


def newest_good(
    root: Path, say: Callable[[str], None], among: Callable[[int], bool] = lambda step: True
) -> Path | None:
    """The newest checkpoint under `root`, `among` the steps asked for, that is what was written.

    Newer ones that are damaged are set aside, each with a sentence to `say`; the next save removes them. None when
    there is no checkpoint; raises UserError, and touches nothing, when all are damaged.
    """
    damaged: list[tuple[Path, Damaged]] = []
    for path in reversed([path_at(root, step) for step in steps(root) if among(step)]):
        try:
            manifest.check(path)
        except Damaged as error:
            damaged.append((path, error))
            continue
        for bad, why in damaged:
            say(f"{bad} is damaged ({why}): going on from the checkpoint before it, {path.name}")
            _hide(bad)
        return path
    if damaged:
        told = "; ".join(f"{bad.name}: {why}" for bad, why in damaged)
        raise UserError(f"no checkpoint under {root} is whole ({told}): remove that folder to train from the start")
    return None


def load(path: Path, stepper: Stepper) -> Progress:
    """Put the state of `path` into `stepper`. Raises UserError when it is not a checkpoint of the same shapes."""
    try:
        weights = load_file(path / WEIGHTS)
        _materialise(stepper)
        state = _written(path / "state", stepper)
        dcp.load(state, checkpoint_id=path / "state", no_dist=True)
        stepper.masters.load(weights)
        stepper.optimizer.load_state_dict(stepper.optimizer.state_dict() | state["optimizer"])
    except (OSError, KeyError, RuntimeError, ValueError, *REFUSED) as error:
        why = _reason(error)
        raise UserError(f"cannot resume from {path}: {why}; remove that folder to start from an older one") from error
    return Progress(**state["progress"])


def _written(folder: Path, stepper: Stepper) -> dict[str, dict[str, Any]]:
    """The state to be read from `folder`, without what its version of this file did not write yet."""
    state = {"optimizer": stepper.optimizer.state_dict(), "progress": vars(Progress())}
    try:
        names = FileSystemReader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # a pickle: noise in it may raise anything
        raise ValueError(f"the index of its state cannot be read ({_reason(error)})") from error
    found = {tuple(name.split(".")[:2]) for name in names}
    for part, late in (("optimizer", stepper.optimizer.beside), ("progress", state["progress"])):
        state[part] = {name: held for name, held in state[part].items() if name not in late or (part, name) in found}
    return state


def _reason(error: BaseException) -> str:
    """What went wrong in one line: torch's error is a traceback, whose last line says it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _materialise(stepper: Stepper) -> None:
    """Give the optimizer its state tensors, so that the checkpoint is read into tensors of the right shapes."""
    for weight in stepper.masters.weights:
        weight.grad = weight.new_zeros(weight.shape)
    for group in stepper.optimizer.param_groups:
        group["lr"] = 0.0
    stepper.optimizer.step()
    stepper.optimizer.zero_grad()
