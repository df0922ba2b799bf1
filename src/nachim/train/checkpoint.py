"""Checkpoints: safetensors for the weights, torch's distributed format for the optimizer, renamed in whole."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

from nachim.model.weights import PREFIX, WEIGHTS, path_at
from nachim.model.weights import latest as latest
from nachim.spec import UserError
from nachim.spec.disk import full_disk_is_an_error
from nachim.train.step import Stepper

# What the two libraries raise when a file cannot be written or read: no OSError, and torch's is not even an Exception.
REFUSED = (SafetensorError, CheckpointException)


@dataclass
class Progress:
    """Where a run stands: steps taken, seconds spent on them over all its sittings, and the threads it began with.

    A resumed run takes as many threads as it began with, for some CPUs' matrix kernels add in another order on others.
    """

    step: int = 0
    seconds: float = 0.0
    threads: int = 0


def step_of(path: Path) -> int:
    """The step of a checkpoint folder."""
    return int(path.name.removeprefix(PREFIX))


def save(root: Path, stepper: Stepper, progress: Progress, keep: frozenset[int]) -> Path:
    """Write a checkpoint and then remove older ones whose step is not in `keep`. Raises UserError on a full disk."""
    final = path_at(root, progress.step)
    temporary = root / f".{final.name}.{os.getpid()}.tmp"
    with full_disk_is_an_error(final):
        try:
            if not final.exists():
                shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have had this number
                temporary.mkdir(parents=True)
                save_file(_contiguous(stepper), temporary / WEIGHTS)
                state = {"optimizer": stepper.optimizer.state_dict(), "progress": vars(progress)}
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # it says that one process saves: so it does
                    dcp.save(state, checkpoint_id=temporary / "state", no_dist=True)
                os.replace(temporary, final)
        except REFUSED as error:
            raise UserError(f"cannot write {final}: {_reason(error)}; is the disk full?") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    prune(root, keep | {progress.step})
    return final


def prune(root: Path, keep: frozenset[int]) -> None:
    """Remove every checkpoint under `root` whose step is not in `keep`, and what a killed process left half-written."""
    for old in root.glob(f"{PREFIX}*"):
        if step_of(old) not in keep:
            shutil.rmtree(old, ignore_errors=True)
    for left in root.glob(f".{PREFIX}*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def load(path: Path, stepper: Stepper) -> Progress:
    """Put the state of `path` into `stepper`. Raises UserError when it is not a checkpoint of the same shapes."""
    try:
        weights = load_file(path / WEIGHTS)
        _materialise(stepper)
        progress = Progress()
        state = {"optimizer": stepper.optimizer.state_dict(), "progress": vars(progress)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(state, checkpoint_id=path / "state", no_dist=True)
        stepper.masters.load(weights)
        stepper.optimizer.load_state_dict(state["optimizer"])
    except (OSError, KeyError, RuntimeError, ValueError, *REFUSED) as error:
        why = _reason(error)
        raise UserError(f"cannot resume from {path}: {why}; remove that folder to start from an older one") from error
    return Progress(**state["progress"])


def _reason(error: BaseException) -> str:
    """What went wrong in one line: torch's error is a traceback, whose last line says it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _contiguous(stepper: Stepper) -> dict:
    return {name: weight.contiguous() for name, weight in stepper.masters.state().items()}


def _materialise(stepper: Stepper) -> None:
    """Give the optimizer its state tensors, so that the checkpoint is read into tensors of the right shapes."""
    for weight in stepper.masters.weights:
        weight.grad = weight.new_zeros(weight.shape)
    for group in stepper.optimizer.param_groups:
        group["lr"] = 0.0
    stepper.optimizer.step()
    stepper.optimizer.zero_grad()
